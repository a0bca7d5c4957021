"""Tokens as programs see them: their text, their bytes, and where they stand in a completion's text."""

import math
from collections.abc import Iterable, Sequence

from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.streaming import TextStream

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; this is what OpenAI's API sends for it


def token_bytes(tokenizer: Tokenizer, index: int) -> bytes:
    """What an id stands for in a text; the name of a special token, which stands for nothing."""
    if not 0 <= index < tokenizer.vocab_size:  # a padding row of the model's table
        return f"<{index}>".encode()
    data = None if index in tokenizer.special_ids else tokenizer.token_bytes(index)
    return tokenizer.id_to_piece(index).encode("utf-8", "replace") if data is None else data


def token_text(data: bytes) -> str:
    """The bytes as text; as `bytes:\\xe2\\x80` where they are only a part of a character, so that no two tokens look alike."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(float(logprob), LOWEST_LOGPROB) if not math.isnan(logprob) else LOWEST_LOGPROB


class TextOffsets:
    """Where each token's text begins, in characters."""

    def __init__(self, tokenizer: Tokenizer, start: int = 0) -> None:
        """Counts from `start`."""
        self._stream, self._offset = TextStream(tokenizer), start

    def push(self, tokens: Iterable[int]) -> list[int]:
        """Offsets of the next tokens; a token that completes a character begun before it stands where the character begins."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._stream.push(token))
        return offsets


def legacy_logprobs(
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    top: Sequence[Sequence[tuple[int, float]]] | None,
    offsets: Sequence[int],
) -> dict[str, object]:
    """The `logprobs` object of /v1/completions.

    Args:
      tokenizer: of the model.
      tokens: ids.
      logprobs: one a token; None for the first token of a text, which nothing predicts.
      top: the most likely (id, log-probability) at each place; None where not asked for. The token itself is added to them.
      offsets: where each token's text begins.
    """
    texts = [token_text(token_bytes(tokenizer, token)) for token in tokens]
    ranked: list[dict[str, float] | None] = []
    for number, (text, logprob) in enumerate(zip(texts, logprobs, strict=True)):
        if top is None or logprob is None:
            ranked.append(None)
            continue
        entries = {token_text(token_bytes(tokenizer, index)): finite(value) for index, value in top[number]}
        ranked.append({**entries, text: finite(logprob)})
    return {
        "tokens": texts,
        "token_logprobs": [None if value is None else finite(value) for value in logprobs],
        "top_logprobs": None if top is None else ranked,
        "text_offset": list(offsets),
    }


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[float], top: Sequence[Sequence[tuple[int, float]]] | None
) -> dict[str, object]:
    """The `logprobs` object of /v1/chat/completions; arguments as in `legacy_logprobs`."""

    def entry(index: int, logprob: float) -> dict[str, object]:
        data = token_bytes(tokenizer, index)
        return {"token": data.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(data)}

    content = [
        {**entry(token, logprob), "top_logprobs": [entry(*pair) for pair in (top[number] if top is not None else ())]}
        for number, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True))
    ]
    return {"content": content, "refusal": None}
