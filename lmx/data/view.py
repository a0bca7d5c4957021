"""Packed batches as text for people: what a model is given, what it is made to learn, and where documents meet."""

import itertools
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.tokenizer.protocol import Tokenizer


def render_batches(batches: Iterable[Any], tokenizer: Tokenizer, count: int, *, max_characters: int = 400) -> str:
    """The first `count` batches, row by row, decoded.

    Each segment (a document, a piece of one, or an example) shows its tokens in runs: "given" are inputs whose label doesn't count,
    "learned" are labels that count.

    Args:
      batches: LMBatch or PreferenceBatch.
      tokenizer: the one that made them.
      count: batches to show.
      max_characters: of each run; the middle of a longer one is left out.
    """
    lines: list[str] = []
    for number, batch in enumerate(itertools.islice(batches, count)):
        parts = [("", batch)] if isinstance(batch, LMBatch) else _pair_parts(batch)
        for row in range(parts[0][1].tokens.shape[0]):
            for name, part in parts:
                lines.extend(_row_lines(f"batch {number}, row {row}{name}", _row(part, row), tokenizer, max_characters))
    return "\n".join(lines)


def _pair_parts(batch: PreferenceBatch) -> list[tuple[str, LMBatch]]:
    return [(", chosen", batch.chosen), (", rejected", batch.rejected)]


def _row(batch: LMBatch, row: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(batch, name))[row] for name in ("tokens", "labels", "loss_mask", "segment_ids", "positions")}


def _row_lines(title: str, row: dict[str, np.ndarray], tokenizer: Tokenizer, max_characters: int) -> Iterator[str]:
    segments = row["segment_ids"]
    padding = int(np.sum(segments == 0))
    learned = int(np.sum(row["loss_mask"]))
    yield f"{title}: {len(segments)} tokens, {int(segments.max())} segments, {learned} labels learned, {padding} padding"
    for segment in range(1, int(segments.max()) + 1):
        places = np.flatnonzero(segments == segment)
        positions = row["positions"][places]
        yield f"  segment {segment}: tokens {places[0]}..{places[-1]}, positions {positions[0]}..{positions[-1]}"
        for counts, ids in _runs(row, places):
            text = _shortened(_text(ids, tokenizer), max_characters)
            yield textwrap.indent(text, f"    {'learned' if counts else 'given  '} | ", lambda line: True)


def _runs(row: dict[str, np.ndarray], places: np.ndarray) -> Iterator[tuple[bool, list[int]]]:
    """(whether it is learned, ids): the first input, then the labels, joined where they are alike.

    The last label is shown if it is learned, being the next row's first input; behind EOS there is none.
    """
    labels = list(zip(row["loss_mask"][places].tolist(), row["labels"][places].tolist(), strict=True))
    sequence = [(False, int(row["tokens"][places[0]])), *(labels if labels[-1][0] else labels[:-1])]
    for counts, run in itertools.groupby(sequence, key=lambda pair: bool(pair[0])):
        yield counts, [index for _, index in run]


def _text(ids: list[int], tokenizer: Tokenizer) -> str:
    """Decoded ids, with specials by name."""
    specials = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    groups = itertools.groupby(ids, key=lambda index: index in specials)
    return "".join("".join(map(tokenizer.id_to_piece, run)) if special else tokenizer.decode(list(run)) for special, run in groups)


def _shortened(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"
