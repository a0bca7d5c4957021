"""What the figures say, in sentences: each claim helped, did not help, or cannot be told from noise."""

import dataclasses
import enum
import itertools
import math

from lmx.eval.statistics import Estimate, difference_of_proportions
from lmx.eval.summary import BitsPerByte, Duel, HeldOutText, RewardAccuracy, Saving, StageAccuracy, Summary


class Status(enum.Enum):
    """Outcome of a claim."""

    HELPED = "helped"
    NOISE = "within noise"
    HURT = "did not help"


_BASELINE_WORDS = {Status.HELPED: "beats baseline", Status.NOISE: "ties baseline", Status.HURT: "behind baseline"}
_CHANCE_WORDS = {Status.HELPED: "above chance", Status.NOISE: "within noise", Status.HURT: "below chance"}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One claim and its outcome.

    Attributes:
      subject: stage or technique.
      status: what the figures say.
      word: the status in a word or two, e.g. "did not help" or "beats baseline".
      sentence: the figures, with their intervals; it goes on from the subject.
    """

    subject: str
    status: Status
    word: str
    sentence: str


def verdicts(summary: Summary) -> list[Verdict]:
    """One verdict for each model, comparison, stage, reward model and duel in the summary."""
    found = []
    if summary.text is not None:
        found += [_against_baselines(entry, summary.text) for entry in summary.text.entries if entry.kind == "model"]
        found += [_saving(saving) for saving in summary.text.savings]
    found += [_accuracy(before, after) for before, after in itertools.pairwise(summary.accuracies)]
    found += [_reward(reward) for reward in summary.rewards]
    found += [_duel(duel) for duel in summary.duels]
    return found


def status(difference: Estimate, at: float = 0.0) -> Status:
    """HELPED when the whole interval lies above `at`, HURT when it lies below, NOISE when it covers it."""
    if difference.low > at:
        return Status.HELPED
    return Status.HURT if difference.high < at else Status.NOISE


def percent(share: float) -> str:
    """`63.2%`."""
    return f"{100 * share:.1f}%"


def percent_interval(estimate: Estimate) -> str:
    """`63.2% [58.4, 67.8]`."""
    return f"{percent(estimate.value)} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _against_baselines(entry: BitsPerByte, text: HeldOutText) -> Verdict:
    """The bar is the strongest baseline fitted on the same training text, and a compressor, which is not, only if there is none."""
    fitted = [baseline for baseline in text.entries if baseline.kind == "fitted"]
    compressors = [baseline for baseline in text.entries if baseline.kind == "compressor"]
    compared = ([min(fitted, key=lambda baseline: baseline.value)] if fitted else []) + compressors
    sentence = f"spends {entry.value:.3f} bits on each of {text.text_bytes:,} held-out bytes"
    if not compared:
        return Verdict(entry.name, Status.NOISE, "no baseline", f"{sentence}; there is no baseline to compare it with.")
    clauses = [f"{abs(b.value - entry.value):.3f} {'fewer' if entry.value < b.value else 'more'} than {b.name}" for b in compared]
    margin = compared[0].value - entry.value  # between two figures on the same bytes, not a sample
    outcome = status(Estimate(margin, low=margin, high=margin, count=text.text_bytes))
    return Verdict(entry.name, outcome, _BASELINE_WORDS[outcome], f"{sentence}: {', '.join(clauses)}.")


def _saving(saving: Saving) -> Verdict:
    saved = saving.saved
    sentence = (
        f"{saving.name} {'saves' if saved.value >= 0 else 'loses'} {abs(saved.value):.4f} bits per byte against {saving.over}"
    )
    if math.isfinite(saved.low):
        sentence += f", interval [{saved.low:+.4f}, {saved.high:+.4f}] over {saved.count:,} held-out rows, one training run each."
    else:
        sentence += "; there are too few held-out rows for an interval."
    return Verdict(f"{saving.what}:", status(saved), status(saved).value, sentence)


def _accuracy(before: StageAccuracy, after: StageAccuracy) -> Verdict:
    change = difference_of_proportions(after.overall, before.overall)
    sentence = (
        f"answers {percent(after.overall.value)} of {after.overall.count:,} held-out prompts exactly right, {before.stage} "
        f"{percent(before.overall.value)}: {100 * change.value:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]."
    )
    shared = [task for task in after.tasks if task in before.tasks]
    worse = [task for task in shared if status(difference_of_proportions(after.tasks[task], before.tasks[task])) is Status.HURT]
    if worse:
        sentence += f" It is worse than {before.stage} on {', '.join(worse)}."
    return Verdict(after.stage, status(change), status(change).value, sentence)


def _reward(reward: RewardAccuracy) -> Verdict:
    accuracy = reward.accuracy
    outcome = status(accuracy, at=0.5)
    sentence = f"ranks the better answer first in {percent_interval(accuracy)} of {accuracy.count:,} held-out pairs; chance is 50%."
    return Verdict(reward.stage, outcome, _CHANCE_WORDS[outcome], sentence)


def _duel(duel: Duel) -> Verdict:
    outcome = status(duel.rate, at=0.5)
    sentence = (
        f"wins {percent_interval(duel.rate)} against {duel.opponent}, ties half: {duel.wins:,} won, {duel.ties:,} tied and "
        f"{duel.losses:,} lost of {duel.rate.count:,} held-out prompts."
    )
    return Verdict(duel.stage, outcome, outcome.value, sentence)
