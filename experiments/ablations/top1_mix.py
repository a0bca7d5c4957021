"""A8: Distilling a mix of 0.9 of the teacher's top-1 raises accuracy, at a price in raw cross-entropy.

lmx run experiments/ablations/top1_mix.py --workdir runs/ablations/A8

Hardware: a CPU, 2 cores.  Results: results/A8.json and RESULTS.md.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from configs.models import tiny
from experiments.ablations import bed, oracle
from lmx.core.types import Array, Metrics, Params, Terms
from lmx.data.batches import LMBatch
from lmx.eval.claims import Finding, above, at_most, below, by_arm
from lmx.kernels import head
from lmx.losses import divergence
from lmx.model.decoder import Model
from lmx.optim import WarmupCosine, WarmupLinear
from lmx.pipeline.experiment import Experiment
from lmx.stages import Bench
from lmx.train import population

ARMS = ("labels", "top-1 at 0.5", "top-1 at 0.9", "top-1 at 1", "full distribution")
TOP1, FULL = np.array([0.0, 0.5, 0.9, 1.0, 0.0], np.float32), np.array([0.0, 0.0, 0.0, 0.0, 1.0], np.float32)
STEPS, PEAK, ROWS, LENGTH = 400, 1e-2, 8, 32
TAIL, LONG_TAIL = 20, 60  # 5% as the rule says, and 15%, the share of AFM's tokens after the core stage
TAIL_PEAKS = (3e-4, 1e-3, 3e-3, 1e-2)  # each arm's best counts


def get_config() -> Experiment:
    """The experiment."""
    return bed.experiment("A8", measure)


def measure(bench: Bench) -> Finding:
    """Students of an exact teacher at five targets, then 5% of the steps on labels alone, at the rate that suits each arm best."""
    found = bench.part("scores", partial(_scores, bench))
    loss, hits, after, later = (found[name] for name in ("loss", "accuracy", "loss after", "loss after the long tail"))
    return Finding(
        outcomes={
            "cross-entropy (nats)": by_arm(ARMS, loss),
            "accuracy": by_arm(ARMS, hits),
            "cross-entropy after the tail of 5% (nats)": by_arm(ARMS, after),
            "accuracy after the tail of 5%": by_arm(ARMS, found["accuracy after"]),
            "cross-entropy after a tail of 15% (nats)": by_arm(ARMS, later),
        },
        checks=(
            above("accuracy, top-1 at 0.9 - labels", hits[2] - hits[0]),
            above("cross-entropy, top-1 at 0.9 - labels (nats)", loss[2] - loss[0]),
            above("cross-entropy, top-1 at 1 - at 0.9 (nats)", loss[3] - loss[2]),
            below("cross-entropy, full distribution - best other (nats)", loss[4] - loss[:4].min(axis=0)),
            at_most("cross-entropy after the tail of 5%, top-1 at 0.9 - labels (nats)", after[2] - after[0], 0.0),
            at_most("cross-entropy after a tail of 15%, top-1 at 0.9 - labels (nats)", later[2] - later[0], 0.0, judged=False),
        ),
        bed=(
            f"Llama of 64 channels, one layer; a Markov chain of 64 symbols which is its own teacher; {STEPS} steps of "
            f"{ROWS * LENGTH} tokens and {TAIL} on labels; scores are exact expectations under the chain"
        ),
        note="A tail's rate is the best of four for each arm; the reported check says what three times the tail does.",
    )


def _scores(bench: Bench) -> dict[str, np.ndarray]:
    """Each [arms, seeds]."""
    config = tiny.llama3(oracle.SYMBOLS, model_dim=64, num_layers=1, max_length=LENGTH, lengthening=1)
    model, frozen = bed.model_of(config), {"teacher": oracle.tables(bench.seeds)}
    batches = oracle.batches(bench.seeds, STEPS + LONG_TAIL, batch_size=ROWS, length=LENGTH)
    main = _part(batches, slice(0, STEPS))
    train = partial(population.train, bed.spec(model, _objective(model), batches), frozen=frozen)
    rates = np.repeat(population.rates([WarmupCosine(peak=PEAK, warmup_steps=15, end_ratio=0.1)], STEPS), len(ARMS), axis=0)
    start = population.initial(model, bench.seeds, arms=len(ARMS))
    trained = train(start, main, rates=rates, knobs={"top1": TOP1, "full": FULL})
    heldout = oracle.batches(bench.seeds, 4, batch_size=32, length=LENGTH, heldout=True)
    before = oracle.scores(model, trained.params, bench.seeds, heldout)

    found = {"loss": before["cross-entropy"], "accuracy": before["accuracy"]}
    for steps, name in ((TAIL, "after"), (LONG_TAIL, "after the long tail")):
        start = jax.tree.map(lambda leaf: np.repeat(leaf, len(TAIL_PEAKS), axis=0), trained.params)
        rates = np.tile(population.rates([WarmupLinear(peak=peak, warmup_steps=0) for peak in TAIL_PEAKS], steps), (len(ARMS), 1))
        nothing = np.zeros(len(rates), np.float32)
        tail = _part(batches, slice(STEPS, STEPS + steps))
        tailed = train(start, tail, rates=rates, knobs={"top1": nothing, "full": nothing})
        after = oracle.scores(model, tailed.params, bench.seeds, heldout)
        loss, hits = (after[key].reshape(len(ARMS), len(TAIL_PEAKS), -1) for key in ("cross-entropy", "accuracy"))
        arms, best = np.arange(len(ARMS)), loss.mean(axis=-1).argmin(axis=-1)  # [arms]
        found |= {f"loss {name}": loss[arms, best], f"accuracy {name}": hits[arms, best]}
    return found


def _objective(model: Model) -> Any:
    """`full KL(teacher || student) + (1 - full) top1_mix(weight=top1)`, both shares traced: the mix is linear in its weight."""

    def loss(teacher: Array, student: Array, *, labels: Array, top1: Array, full: Array) -> Array:
        plain, best = (divergence.top1_mix(teacher, student, labels=labels, weight=weight) for weight in (0.0, 1.0))
        return full * divergence.forward_kl(teacher, student) + (1 - full) * ((1 - top1) * plain + top1 * best)

    def objective(params: Params, frozen: Mapping[str, Any], batch: LMBatch, key: Array) -> tuple[Terms, Metrics]:
        del key
        shares = {name: frozen[name] for name in ("top1", "full")}
        outputs = oracle.teacher(frozen["teacher"], batch), model.apply(params, batch)
        total, _ = head.token_loss_sum(*outputs, partial(loss, labels=batch.labels, **shares), mask=batch.loss_mask)
        return {"distillation": (1.0, total)}, {}

    return objective


def _part(batches: LMBatch, steps: slice) -> LMBatch:
    return LMBatch(**{name: leaf[:, steps] for name, leaf in vars(batches).items()})
