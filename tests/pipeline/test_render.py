"""Batches as text show boundaries and masks where they are."""

from typing import Any

import numpy as np

from lmx.data.batches import LMBatch, PreferenceBatch
from lmx.pipeline.render import batch_lines
from lmx.tokenizer.bytes import ByteTokenizer

TOKENIZER = ByteTokenizer()


def packed(*documents: tuple[str, str], length: int) -> Any:
    """One row of (read, learned) documents, each ended by a learned EOS, padded to `length`."""
    tokens, labels, mask, segments = [], [], [], []
    for number, (read, learned) in enumerate(documents, start=1):
        ids = [*TOKENIZER.encode(read + learned), TOKENIZER.eos_id]
        counts = [index >= len(TOKENIZER.encode(read)) for index in range(len(ids))]
        tokens += ids
        labels += [*ids[1:], TOKENIZER.pad_id]
        mask += [*counts[1:], False]
        segments += [number] * len(ids)
    padding = length - len(tokens)
    rows = [values + [fill] * padding for values, fill in ((tokens, 0), (labels, 0), (mask, False), (segments, 0))]
    arrays = [np.array([row]) for row in rows]
    return LMBatch(*arrays, positions=np.zeros_like(arrays[0]))


def shown(batch: Any, **limits: int) -> list[str]:
    return list(batch_lines(batch, TOKENIZER, **({"max_rows": 4, "max_characters": 100} | limits)))


def test_documents_are_apart_and_unlearned_text_is_in_brackets() -> None:
    eos = TOKENIZER.id_to_piece(TOKENIZER.eos_id)
    assert shown(packed(("2+2=", "4"), ("né", "w\nline"), length=24)) == [
        "row 0: 24 tokens, 2 documents, 8 padding, 9 count in the loss",
        "  document 1: tokens 0..5, 2 count in the loss",
        f"    │ ⟦2+2=⟧4{eos}",
        "  document 2: tokens 6..15, 7 count in the loss",
        "    │ ⟦né⟧w",
        f"    │ line{eos}",
    ]


def test_a_label_beyond_the_row_is_shown_too() -> None:
    ids = np.array([TOKENIZER.encode("abc")])
    full = np.ones_like(ids)
    batch: Any = LMBatch(ids, np.array([TOKENIZER.encode("bcd")]), full > 0, full, full)  # type: ignore[arg-type]
    assert shown(batch)[-1] == "    │ ⟦a⟧bcd"


def test_long_documents_lose_their_middle() -> None:
    line = shown(packed(("", "x" * 500), length=600), max_characters=30)[-1]
    assert line.count("x") < 40 and "characters" in line


def test_pairs_show_both_sides() -> None:
    batch = PreferenceBatch(chosen=packed(("q", "yes"), length=8), rejected=packed(("q", "no"), length=8))
    lines = shown(batch)
    assert lines[0] == "pair 0"
    assert [line for line in lines if line.startswith("  chosen")] == [
        "  chosen: 8 tokens, 1 documents, 3 padding, 4 count in the loss"
    ]
    assert any("⟦q⟧no" in line for line in lines)


def test_only_the_asked_number_of_rows_is_shown() -> None:
    row = packed(("", "a"), length=4)
    batch: Any = LMBatch(
        *(np.repeat(getattr(row, name), 3, 0) for name in ("tokens", "labels", "loss_mask", "segment_ids", "positions"))
    )
    assert sum(line.startswith("row") for line in shown(batch, max_rows=2)) == 2
