"""Text as it comes, id by id, never half a character."""

import codecs
import re

from lmx.tokenizer.protocol import Tokenizer

_HALF_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]?\Z")
_BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


class TextStream:
    """Incremental detokenization: what `push` and `finish` return, joined, is `tokenizer.decode` of all the ids.

    How much is held back depends on the tokenizer. Byte-level vocabularies hold back at most the three bytes of a character that is
    not yet complete; vocabularies with byte fallback hold back a run of byte pieces until another piece ends it, because their
    libraries decode a run as a whole. A `tokenizer.json` whose decoder looks at whole texts gives its text at `finish`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Starts an empty text."""
        self._tokenizer = tokenizer
        self._errors = getattr(tokenizer, "decode_errors", "replace")
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        self._tail = b""
        self._held: list[int] = []
        self._anchor: list[int] = []  # ids of the text's beginning; decoded in front of later ids, these are in a text's middle
        self._anchor_text = ""

    def push(self, index: int) -> str:
        """Takes the next id and returns the text that is certain now, which may be empty.

        Raises:
          ValueError: the id is outside the vocabulary.
        """
        index = int(index)
        if not 0 <= index < self._tokenizer.vocab_size:
            raise ValueError(f"id {index} is outside the tokenizer's vocabulary of {self._tokenizer.vocab_size}")
        if index in self._tokenizer.special_ids:
            return ""
        if self._tokenizer.streaming_style == "bytes":
            return self._push_bytes(self._tokenizer.token_bytes(index) or b"")
        self._held.append(index)
        ends_run = self._tokenizer.streaming_style == "pieces" and not _BYTE_PIECE.fullmatch(self._tokenizer.id_to_piece(index))
        return self._release() if ends_run else ""

    def finish(self) -> str:
        """The rest of the text; bytes that never became a character are U+FFFD."""
        if self._tokenizer.streaming_style == "bytes":
            return self._decoder.decode(self._tail, True)
        return self._release()

    def _push_bytes(self, data: bytes) -> str:
        data = self._tail + data
        half = _HALF_SURROGATE.search(data) if self._errors != "replace" else None
        end = half.start() if half else len(data)
        self._tail = data[end:]
        return self._decoder.decode(data[:end])

    def _release(self) -> str:
        """Text of the held ids; the first ones become the anchor of all later ones."""
        ids, self._held = self._held, []
        text = self._tokenizer.decode(self._anchor + ids)[len(self._anchor_text) :]
        if not self._anchor_text:
            # Nothing but a leading space that the decoder drops: what follows belongs to it.
            self._anchor, self._anchor_text = self._anchor + ids, text
        return text
