"""Checkpoints in and out: Hugging Face directories, GGUF files, Meta's Llama layout, and lmx's own artifacts."""

from lmx.convert.conversion import Report as Report
from lmx.convert.conversion import convert as convert
