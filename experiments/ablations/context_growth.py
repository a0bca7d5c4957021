"""M6: context grown in gated steps reaches long lengths without harm.

lmx run experiments/ablations/context_growth.py --workdir runs/ablations/M6

Documents of 30 tokens, then of 40, 48, 60, 80, 120 and 240, each length until its gate opens for every seed; against one jump to
240 for as many tokens. A document states a digit and asks for it at its end. Rows are of 240 tokens all along, with as many whole
documents behind the mask as they hold, so that every length runs in the same program; RoPE is Llama 3.1's, scaling on, as trained
at 30 and meant for 240. The short loss leaves out labels that tell of the length alone. A quarter of the tokens stays
in documents of 30, and the optimizer's state goes on through the lengths, as in `lmx.stages.Lengthen`.

Hardware: a CPU, 2 cores.  Results: results/M6.json and RESULTS.md.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from configs.models import tiny
from experiments.ablations import bed
from lmx.core.logging import logger
from lmx.core.types import Params
from lmx.data.batches import LMBatch
from lmx.data.recall import Facts, RecallText
from lmx.data.text import Component, PackedText
from lmx.eval.claims import Finding, at_least, at_most, below, by_arm, holds
from lmx.eval.needle import NeedleTest, find_needles
from lmx.model.decoder import Model
from lmx.optim import Constant, WarmupCosine
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.stages.lengthen import LengthGate
from lmx.train import population
from lmx.train.state import TrainState

SHORT, LENGTHS, ROW, BATCH = 30, (40, 48, 60, 80, 120, 240), 240, 4
FIRST, EVERY, MOST = 450, 20, 80  # steps at the short length; between two looks at a gate; at one length, twice at the last
FACTS = Facts(question="{key}", answer="{value}", opening="", ending="", keys=("@",), digits=1)
NEEDLES = NeedleTest(facts=FACTS, samples=20)
GATE = LengthGate(short_length=SHORT, short_tolerance=0.01, needle=NEEDLES, accuracy=0.99, every=EVERY)
PEAK, LEFT = 5e-3, 0.2  # learning rate, and the share of it that the short length ends with and longer ones keep
ARMS = ("staged", "one jump")


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("M6", measure)


def measure(bench: Bench) -> Finding:
    """Six gated lengths, and one jump for as many steps."""
    found = bench.part("growth", lambda: _growth(bench))
    needles, short, long = found["needles"], found["short"], found["long"]
    seeds = range(len(bench.seeds))
    return Finding(
        outcomes={
            "steps until the gate opened": by_arm([f"length {length}" for length in LENGTHS], found["steps"]),
            "needles found when the gate opened, or at last (share)": by_arm(
                [f"length {length}" for length in LENGTHS], found["gate needles"]
            ),
            "needles found at 240 (share)": by_arm(("before", *ARMS), needles),
            "held-out loss on documents of 30 (nats)": by_arm(("before", *ARMS), short),
            "held-out loss on documents of 240 (nats)": by_arm(("before", *ARMS), long),
        },
        checks=(
            at_least("needles found at 240, staged (share)", needles[1], GATE.accuracy),
            holds("all six gates opened", [bool(found["opened"].all())] * len(seeds)),
            below("held-out loss on documents of 30, staged - before (nats)", short[1] - short[0], GATE.short_tolerance),
            at_most("held-out loss on documents of 240, staged - one jump (nats)", long[1] - long[2], 0.002),
            at_least("needles found at 240, staged - one jump (share)", needles[1] - needles[2], -0.01),
        ),
        bed=(
            f"Llama of width 64, 2 layers, random common words with a fact in bytes, {FIRST} steps of {BATCH * ROW} at {SHORT}, "
            f"then {int(found['steps'][:, 0].sum())} in six lengths or one jump"
        ),
    )


def _growth(bench: Bench) -> dict[str, np.ndarray]:
    """Steps, needles and state of the gates [lengths, seeds]; needles and losses [before and arms, seeds]."""
    model = bed.model_of(tiny.llama3(bed.BYTES.vocab_size, num_layers=2, max_length=ROW, lengthening=ROW // SHORT))
    short, long = (packed(length, (0,), 16, split="heldout") for length in (SHORT, ROW))
    first = _trained(model, population.initial(model, bench.seeds), None, SHORT, bench.seeds, FIRST)[FIRST]
    before = first.params
    loss_before = _short_loss(model, before, short)[0]
    state, log = first, []
    for length in LENGTHS:
        looks = _trained(model, state.params, state, length, bench.seeds, MOST * (1 + (length == ROW)), gated=True)
        for step, state in looks.items():
            params = state.params
            needles, losses = _needles(model, params, length), _short_loss(model, params, short)[0]
            opens = np.array(
                [GATE.opens(short_loss=x, before=b, accuracy=n) for x, b, n in zip(losses, loss_before, needles, strict=True)]
            )
            logger.info("length %d, step %d: short loss %s, needles %s", length, step, losses - loss_before, needles)
            if opens.all():
                break
        log.append((np.full(len(opens), step), needles, opens))
    steps, gate_needles, opened = (np.stack(part) for part in zip(*log, strict=True))
    total = int(steps[:, 0].sum())
    jump = _trained(model, before, first, ROW, bench.seeds, total)[total]
    arms = (before, state.params, jump.params)
    return {
        "steps": steps,
        "gate needles": gate_needles,
        "opened": opened,
        "needles": np.stack([_needles(model, params, ROW) for params in arms]),
        "short": np.concatenate([_short_loss(model, params, short) for params in arms]),
        "long": np.concatenate([bed.mean_losses(model, params, long) for params in arms]),
    }


def _trained(
    model: Model, params: Params, start: TrainState | None, length: int, seeds: Sequence[int], steps: int, *, gated: bool = False
) -> dict[int, TrainState]:
    """The states at each look at the gate, or only at the end; the rate falls at the short length and then stays."""
    rows = packed(length, seeds, steps)
    if length != SHORT:
        short = packed(SHORT, seeds, steps)
        rows = jax.tree.map(lambda x, y: np.concatenate([x[:, :, :-1], y[:, :, :1]], axis=2), rows, short)
    schedule = WarmupCosine(peak=PEAK, warmup_steps=20, end_ratio=LEFT) if length == SHORT else Constant(value=LEFT * PEAK)
    trained = bed.train(
        model,
        params,
        rows,
        rates=population.rates([schedule], steps),
        snapshots=tuple(range(EVERY, steps + 1, EVERY)) if gated else (steps,),
        chunk=20,
        start=start,
        keep_states=True,
    )
    return trained.states


def packed(length: int, seeds: Sequence[int], steps: int, split: str = "train") -> LMBatch:
    """Batches of rows of 240, each of whole documents of `length`: [S, N, B, T], held-out ones [N, B, T]."""
    overhead = len(FACTS.state("@", "0")) + len("\n" + FACTS.ask("@") + FACTS.reply("0")) + 2  # and BOS and EOS
    filler, batch = length - overhead, BATCH * (ROW // length)
    documents = steps * batch
    source = RecallText(
        facts=FACTS,
        num_facts=1,
        questions=1,
        min_characters=filler,
        max_characters=filler,
        count=documents,
        heldout_count=documents,
    )
    data = PackedText(components=(Component(source=source),))
    if split == "heldout":
        rows = bed.heldout(steps, batch_size=batch, length=length, data=data)
    else:
        rows = bed.text(seeds, steps, batch_size=batch, length=length, data=data)
    segments = 1 + np.arange(ROW, dtype=np.int32) // length

    def joined(x: np.ndarray) -> np.ndarray:
        return np.reshape(x, (*x.shape[:-2], BATCH, ROW))

    whole = jax.tree.map(joined, rows)
    return dataclasses.replace(whole, segment_ids=np.broadcast_to(segments, whole.tokens.shape))


def _short_loss(model: Model, params: Params, short: LMBatch) -> np.ndarray:
    """[A, S] nats a label, but for those of the layout: where a fact, the question and the end come depends on the length alone."""
    layout = [*bed.BYTES.encode("@\n"), bed.BYTES.eos_id]
    values = bed.token_losses(model, params, short)
    return population.mean_over_tokens(values, short, ~np.isin(np.asarray(short.labels), layout))


def _needles(model: Model, params: Params, length: int) -> np.ndarray:
    """[seeds] share of needles found, of parameters [1, S, ...]."""
    found = []
    for seed in range(jax.tree.leaves(params)[0].shape[1]):
        own = jax.tree.map(lambda x, seed=seed: x[0, seed], params)
        found.append(find_needles(NEEDLES, model, own, bed.BYTES, length=length).accuracy)
    return np.array(found)
