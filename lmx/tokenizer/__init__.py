"""Text to ids and back, behind one protocol: SentencePiece and bytes, and the template that frames a prompt."""

from lmx.tokenizer.protocol import Tokenizer as Tokenizer
from lmx.tokenizer.storage import load as load
