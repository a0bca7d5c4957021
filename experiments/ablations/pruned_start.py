"""A5: A pruned start beats a random one. A6: Learned masks prune better than magnitude, and magnitude better than chance.

lmx run experiments/ablations/pruned_start.py --workdir runs/ablations/A5

Both claims are judged on the same runs. Hardware: a CPU, 2 cores.  Results: results/A5.json, results/A6.json and RESULTS.md.
"""

from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.ablations import afm, bed, claims
from lmx.core.types import Params
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, above, at_most, below, by_arm
from lmx.model.decoder import Model
from lmx.optim import Constant, Optimizer, RMSProp
from lmx.pipeline.experiment import Experiment
from lmx.pruning import learned, scores
from lmx.pruning.choose import Scores, highest
from lmx.pruning.cut import Keep, cut
from lmx.pruning.learned import MaskOptimizer, MaskSchedule
from lmx.stages import Bench, Measure
from lmx.train import population

LENGTH, ROWS = 64, 8
PARENT_STEPS, MASK_STEPS, CORE_STEPS = 200, 60, 160
MASK_RATE = 1e-3  # of the parent's weights while masks are learned; scores learn at ten times it
WEIGHTS = RMSProp(schedule=Constant(value=MASK_RATE), weight_decay=0.0, mup=None)
FFN = (396, 132)  # three to one, as 24,064 to 8,064
PARENT, CHILD = (afm.decoder(model_dim=48, ffn_dim=width, max_length=LENGTH) for width in FFN)
ARMS = ("random start", "random slice", "magnitude slice", "learned slice")
MARKS = tuple(CORE_STEPS * k // 8 for k in range(9))
BED = (
    f"AFM of width 48, FFN 396 cut to 132, Python's documentation in bytes; parent {PARENT_STEPS}, masks {MASK_STEPS}, core "
    f"{CORE_STEPS} steps of {ROWS * LENGTH} tokens"
)


def get_config() -> Experiment:
    """The experiment: two claims on the same runs, the second of which finds the first one's."""
    by = {"A5": better_start, "A6": better_masks}
    stages = {name: Measure(claim=claims.BY_ID[name], by=measure) for name, measure in by.items()}
    return Experiment(name="A5", seed=0, stages=stages)


def better_start(bench: Bench) -> Finding:
    """A5, from the held-out losses of four starts along the core stage."""
    losses = _shared(bench)["losses"]  # [arms, marks, S]
    random, learned_slice = losses[0], losses[3]
    return Finding(
        outcomes=_outcomes(losses),
        checks=(
            below("held-out loss at 25% of the tokens, learned slice - random start (nats)", (learned_slice - random)[2]),
            at_most("held-out loss at the end, learned slice - random start (nats)", (learned_slice - random)[-1], 0.0),
        ),
        bed=BED,
    )


def better_masks(bench: Bench) -> Finding:
    """A6: which slice starts lower, and how long a random start takes for what the learned slice has at half of the stage."""
    losses = _shared(bench)["losses"]
    random, sliced, magnitude, mask = losses
    half = len(MARKS) // 2
    ratio = [_reached(random[:, seed], mask[half, seed]) / MARKS[half] for seed in range(len(bench.seeds))]
    return Finding(
        outcomes=_outcomes(losses),
        checks=(
            at_most("held-out loss at the end, learned - magnitude slice (nats)", (mask - magnitude)[-1], 0.0),
            at_most("held-out loss at the end, magnitude - random slice (nats)", (magnitude - sliced)[-1], 0.0),
            above("tokens of a random start for the learned slice's loss at half of the stage, ratio", ratio, 1.2),
            at_most("held-out loss after the cut, learned - magnitude slice (nats)", (mask - magnitude)[0], 0.0, judged=False),
            at_most("held-out loss after the cut, magnitude - random slice (nats)", (magnitude - sliced)[0], 0.0, judged=False),
        ),
        bed=BED,
        note="A ratio of 2 is the most that can be seen: the random start did not get there before the end of its stage.",
    )


def _outcomes(losses: np.ndarray) -> dict[str, dict[str, tuple[float, ...]]]:
    named = {"after the cut": 0, "at 25% of the core stage": 2, "at 50%": 4, "at the end": -1}
    return {f"held-out loss {name} (nats)": by_arm(ARMS, losses[:, mark].tolist()) for name, mark in named.items()}


def _reached(curve: np.ndarray, loss: float) -> float:
    """Steps at which a falling curve over MARKS first has the loss, by linear interpolation; the last mark if it never does."""
    for mark in range(1, len(MARKS)):
        if curve[mark] <= loss:
            share = (curve[mark - 1] - loss) / (curve[mark - 1] - curve[mark])
            return MARKS[mark - 1] + float(share) * (MARKS[mark] - MARKS[mark - 1])
    return float(MARKS[-1])


def _shared(bench: Bench) -> Any:
    """{"losses": [arms, marks, seeds]}, computed by whichever claim comes first."""
    shared = Bench(bench.seeds, bench.folder.parent / "shared")
    return shared.part("losses", partial(_losses, bench.seeds))


def _losses(seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    batches = bed.text(seeds, PARENT_STEPS + MASK_STEPS + CORE_STEPS, batch_size=ROWS, length=LENGTH)
    parent = bed.model_of(PARENT)
    rates = afm.rates([afm.PEAK], PARENT_STEPS)
    train = partial(bed.train, optimizer=afm.rmsprop())
    trained = train(parent, population.initial(parent, seeds), _steps(batches, 0, PARENT_STEPS), rates=rates)
    parents = [jax.tree.map(lambda leaf, s=s: leaf[0, s], trained.params) for s in range(len(seeds))]
    children = _children(seeds, parents, _steps(batches, PARENT_STEPS, PARENT_STEPS + MASK_STEPS))
    # The random start continues on the same text as the others; the parent's text is new to none of the arms but itself.
    core = _steps(batches, PARENT_STEPS + MASK_STEPS, PARENT_STEPS + MASK_STEPS + CORE_STEPS)
    rates = afm.rates([afm.PEAK] * len(ARMS), CORE_STEPS)
    child = bed.model_of(CHILD)
    cores = train(child, children, core, rates=rates, snapshots=MARKS)
    heldout = bed.heldout(16, batch_size=32, length=LENGTH)
    curves = [bed.mean_losses(child, cores.snapshots[mark], heldout) for mark in MARKS]
    return {"losses": np.stack(curves, axis=1)}


def _children(seeds: tuple[int, ...], parents: list[Params], batches: LMBatch) -> Params:
    """Leaves [arms, S, ...]: the starts of the core stage, in the order of ARMS."""
    fresh = population.initial(bed.model_of(CHILD), seeds)
    slices = [jax.tree.map(lambda leaf: leaf[0], fresh)]
    learned_masks = _learned(seeds, parents, batches)
    # By as much as the parents under masks, so that these arms differ in their cut alone.
    parents = _trained_on(bed.model_of(PARENT), parents, batches, WEIGHTS)
    by_chance = [cut(own, PARENT, _keep(scores.random_scores(PARENT, seed))) for own, seed in zip(parents, seeds, strict=True)]
    by_weight = [cut(own, PARENT, _keep(scores.weight_scores(own, PARENT))) for own in parents]
    for children in (by_chance, by_weight, learned_masks):
        slices.append(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(children)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *slices)


def _trained_on(model: Model, parents: list[Params], batches: LMBatch, optimizer: Optimizer) -> list[Params]:
    """The parents of the seeds after the steps of the mask stage, at the optimizer's own rate: the population's is 1."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves)[None], *parents)
    rates = np.ones((1, MASK_STEPS), np.float32)
    trained = bed.train(model, stacked, batches, optimizer=optimizer, steps=MASK_STEPS, rates=rates)
    return [jax.tree.map(lambda leaf, s=s: leaf[0, s], trained.params) for s in range(len(parents))]


def _keep(found: Scores) -> Keep:
    """The units of the highest scores, nothing else being cut."""
    return Keep(ffn=tuple(None if units is None else highest(units, FFN[1]) for units in found.ffn))


def _learned(seeds: tuple[int, ...], parents: list[Params], batches: LMBatch) -> list[Params]:
    """The children whose masks were trained with the parents."""
    schedule = MaskSchedule()
    model = learned.masked_model(bed.model_of(PARENT), CHILD, schedule, steps=MASK_STEPS)
    widths = learned.pruned_widths(PARENT, CHILD)
    own = [
        learned.with_masks(params, jax.random.fold_in(jax.random.key(seed), 1), widths, PARENT.num_repeats, schedule)
        for params, seed in zip(parents, seeds, strict=True)
    ]
    masked = _trained_on(model, jax.device_get(own), batches, MaskOptimizer(model=WEIGHTS))
    return [learned.harden(params, PARENT, CHILD, schedule) for params in masked]


def _steps(batches: LMBatch, begin: int, end: int) -> LMBatch:
    return jax.tree.map(lambda leaf: leaf[:, begin:end], batches)
