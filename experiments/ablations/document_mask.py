"""M5: attention confined to documents makes packing neutral.

lmx run experiments/ablations/document_mask.py --workdir runs/ablations/M5

Documents of 64 tokens, the first of them the start token, two or eight to a row, in an order drawn at random. With the mask, a
token sees its own document alone; without it, all of the row before it, at positions that run on. Rows of 128 and 512 stand for the
specification's 128 and 1024.

Hardware: a CPU, 2 cores.  Results: results/M5.json and RESULTS.md.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.ablations import bed
from lmx.core.types import Params
from lmx.data.batches import LMBatch
from lmx.eval.claims import Check, Finding, at_least, at_most, by_arm
from lmx.model.decoder import Model
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.tokenizer.protocol import start_id
from lmx.train import population

STEPS, PEAK, TOKENS = 250, 5e-3, 1024  # of a batch
DOCUMENT, FIRST = 64, 32
ROWS = (128, 512)


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M5", measure)


def measure(bench: Bench) -> Finding:
    """Two lengths of rows, with and without the mask."""
    found = {row: bench.part(f"rows of {row}", partial(_row, bench, row)) for row in ROWS}
    short, long = (found[row]["first"][0] - found[row]["first"][1] for row in ROWS)  # without - with
    moved = np.maximum(*(found[row]["moved"][1] for row in ROWS))
    checks: tuple[Check, ...] = (
        at_least("gain on the first 32 tokens, rows of 512 - rows of 128 (nats)", long - short, 0.0),
        at_most("with the mask, change of a token's loss by repacking (nats, largest)", moved, 1e-4),
        at_least("gain on the first 32 tokens in rows of 512 (nats)", long, 0.0, judged=False),
        at_least(
            "without the mask, change of a token's loss by repacking (nats, largest)", found[128]["moved"][0], 0.0, judged=False
        ),
    )
    arms = [f"{mask}, rows of {row}" for row in ROWS for mask in ("no mask", "mask")]
    return Finding(
        outcomes={
            "loss on a document's first 32 tokens (nats)": by_arm(arms, [losses for row in ROWS for losses in found[row]["first"]]),
            "loss on all tokens (nats)": by_arm(arms, [losses for row in ROWS for losses in found[row]["all"]]),
        },
        checks=checks,
        bed=f"Llama of width 32, documents of {DOCUMENT} bytes of Python's documentation, {STEPS} steps of {TOKENS}",
    )


def _row(bench: Bench, row: int) -> dict[str, np.ndarray]:
    """[no mask and mask, seeds] losses of the first tokens and of all, and how much repacking changes a token's."""
    packed = repacked(bed.text(bench.seeds, STEPS, batch_size=TOKENS // DOCUMENT, length=DOCUMENT), row)
    batches = jax.tree.map(lambda *arms: np.stack(arms), without_mask(packed), packed)
    model = bed.model_of(bed.llama(model_dim=32, max_length=ROWS[-1]))
    schedule = WarmupCosine(peak=PEAK, warmup_steps=20)
    trained = bed.train(
        model,
        population.initial(model, bench.seeds, arms=2),
        batches,
        rates=population.rates([schedule, schedule], STEPS),
        own_batches=True,
    )
    documents = bed.heldout(32, batch_size=TOKENS // DOCUMENT, length=DOCUMENT)
    losses = {size: _both(model, trained.params, documents, size) for size in ROWS}
    values = losses[row]
    difference = np.abs(losses[ROWS[0]] - losses[ROWS[1]]) * np.asarray(documents.loss_mask)
    return {
        "first": population.mean_over_tokens(values, documents, np.arange(DOCUMENT) < FIRST),
        "all": population.mean_over_tokens(values, documents),
        "moved": difference.max(axis=(2, 3, 4)),
    }


def _both(model: Model, params: Params, documents: LMBatch, row: int) -> np.ndarray:
    """[2, S, N, B, T] losses of documents packed into rows: without the mask of arm 0, with it of arm 1."""
    rows = repacked(documents, row)
    parts = []
    for arm, batches in enumerate((without_mask(rows), rows)):
        own = jax.tree.map(lambda x, arm=arm: x[arm : arm + 1], params)
        losses = bed.token_losses(model, own, batches)
        parts.append(losses.reshape(*losses.shape[:3], -1, DOCUMENT))
    return np.concatenate(parts)


def repacked(documents: LMBatch, row: int) -> LMBatch:
    """Rows [..., B, T], each taken for a document behind a start token, joined to rows of `row` tokens with a segment each."""
    count = row // DOCUMENT

    def joined(x: Any) -> np.ndarray:
        return np.reshape(x, (*x.shape[:-2], x.shape[-2] // count, row))

    segments = np.broadcast_to(1 + np.arange(row) // DOCUMENT, joined(documents.tokens).shape)
    places = np.broadcast_to(np.arange(row) % DOCUMENT, segments.shape)
    rows = jax.tree.map(joined, documents)
    tokens = np.where(places == 0, np.int32(start_id(bed.BYTES)), rows.tokens)
    changed: dict[str, Any] = {"tokens": tokens, "segment_ids": segments.astype(np.int32), "positions": places.astype(np.int32)}
    return dataclasses.replace(rows, **changed)


def without_mask(rows: LMBatch) -> LMBatch:
    """The same rows as one document each, positions running on."""
    places = np.broadcast_to(np.arange(rows.tokens.shape[-1], dtype=np.int32), rows.tokens.shape)
    changed: dict[str, Any] = {"segment_ids": np.ones_like(rows.segment_ids), "positions": places}
    return dataclasses.replace(rows, **changed)
