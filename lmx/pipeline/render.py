"""Packed batches as text: rows, documents, and which tokens count in the loss."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from lmx.data.batches import LMBatch, PreferenceBatch, TeacherBatch
from lmx.tokenizer.protocol import Tokenizer

LEGEND = "Text in ⟦ ⟧ is read but does not count in the loss."


def batch_lines(batch: Any, tokenizer: Tokenizer, *, max_rows: int, max_characters: int) -> Iterator[str]:
    """A batch for people, line by line.

    Args:
      batch: LMBatch, PreferenceBatch or TeacherBatch (its text) of host arrays.
      tokenizer: what decodes its tokens.
      max_rows: rows (or pairs) to show.
      max_characters: characters of a document to show; a longer one loses its middle.
    """
    if isinstance(batch, TeacherBatch):
        batch = batch.text
    if isinstance(batch, PreferenceBatch):
        for row in range(min(max_rows, len(batch.chosen.tokens))):
            yield f"pair {row}"
            for name, side in (("chosen", batch.chosen), ("rejected", batch.rejected)):
                yield from _row_lines(side, row, tokenizer, f"  {name}", max_characters)
    else:
        for row in range(min(max_rows, len(batch.tokens))):
            yield from _row_lines(batch, row, tokenizer, f"row {row}", max_characters)


def _row_lines(batch: LMBatch, row: int, tokenizer: Tokenizer, title: str, max_characters: int) -> Iterator[str]:
    segment_ids, loss_mask = np.asarray(batch.segment_ids[row]), np.asarray(batch.loss_mask[row])
    documents = [int(segment) for segment in np.unique(segment_ids) if segment > 0]
    padding = int(np.sum(segment_ids == 0))
    counts = int(loss_mask.sum())
    yield f"{title}: {len(segment_ids)} tokens, {len(documents)} documents, {padding} padding, {counts} count in the loss"
    indent = " " * (len(title) - len(title.lstrip()) + 2)
    for segment in documents:
        (places,) = np.nonzero(segment_ids == segment)
        first, last = int(places[0]), int(places[-1])
        counted = int(loss_mask[places].sum())
        yield f"{indent}document {segment}: tokens {first}..{last}, {counted} count in the loss"
        text = _document_text(batch, row, places, tokenizer)
        for line in _shorten(text, max_characters).split("\n"):
            yield f"{indent}  │ {line}"


def _document_text(batch: LMBatch, row: int, places: np.ndarray, tokenizer: Tokenizer) -> str:
    """The tokens of one document and the label after its last token if that counts; specials by their names."""
    ids = [int(token) for token in np.asarray(batch.tokens[row])[places]]
    mask = [bool(counts) for counts in np.asarray(batch.loss_mask[row])[places]]
    learned = [False, *mask[:-1]]  # labels[t] is tokens[t + 1], so mask[t] tells of the token after
    if mask[-1]:
        ids.append(int(batch.labels[row][places[-1]]))
        learned.append(True)
    specials = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    pieces = []
    for counts, run in itertools.groupby(range(len(ids)), key=learned.__getitem__):
        text = _decode_run(ids, list(run), specials, tokenizer)
        pieces.append(text if counts else f"⟦{text}⟧")
    return "".join(pieces)


def _decode_run(ids: list[int], run: list[int], specials: set[int | None], tokenizer: Tokenizer) -> str:
    """Text that the tokens `run` add to those before them: decoded alone, a first word would lose its space."""
    text = ""
    for special, part in itertools.groupby(run, key=lambda index: ids[index] in specials):
        places = list(part)
        if special:
            text += "".join(tokenizer.id_to_piece(ids[index]) for index in places)
        else:
            before, through = tokenizer.decode(ids[: places[0]]), tokenizer.decode(ids[: places[-1] + 1])
            text += through[len(before) :]
    return text


def _shorten(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head, tail = text[: limit * 2 // 3], text[len(text) - limit // 3 :]
    return f"{head} … {len(text) - len(head) - len(tail)} characters … {tail}"
