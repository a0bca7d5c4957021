"""Tokenizers in the metadata of GGUF files, both ways."""

from lmx.tokenizer.gguf.reading import from_metadata as from_metadata
from lmx.tokenizer.gguf.writing import to_metadata as to_metadata
