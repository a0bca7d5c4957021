"""Batches that change their shape along a run: at exact token marks, a whole number of steps apart."""

import bisect
import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """The shape of the batches from a token mark on.

    Attributes:
      from_tokens: tokens of the run, over all processes, before the first batch of this shape.
      batch_size: rows of the global batch.
      length: T, tokens of a row.
      microbatches: gradient accumulation.
    """

    from_tokens: int
    batch_size: int
    length: int
    microbatches: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.length < 2:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1, length={self.length} at least 2")
        if self.microbatches < 1 or self.batch_size % self.microbatches:
            raise ValueError(f"batch_size={self.batch_size} must be a multiple of microbatches={self.microbatches}")

    @property
    def batch_tokens(self) -> int:
        """Tokens of a global batch."""
        return self.batch_size * self.length


@dataclasses.dataclass(frozen=True)
class Ramp:
    """The phases of a run, the first from token 0 on.

    Attributes:
      phases: in the order of their marks.
    """

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases or self.phases[0].from_tokens != 0:
            raise ValueError("a ramp starts with a phase from_tokens=0")
        for before, after in zip(self.phases, self.phases[1:], strict=False):
            _check_mark(before, after)

    @property
    def first_steps(self) -> tuple[int, ...]:
        """Steps made before each phase."""
        steps = [0]
        for before, after in zip(self.phases, self.phases[1:], strict=False):
            steps.append(steps[-1] + (after.from_tokens - before.from_tokens) // before.batch_tokens)
        return tuple(steps)

    @property
    def longest(self) -> int:
        """The greatest length of a row."""
        return max(phase.length for phase in self.phases)

    def index(self, step: int) -> int:
        """The phase of the batch that follows `step` batches."""
        return bisect.bisect_right(self.first_steps, step) - 1

    def tokens(self, step: int) -> int:
        """Tokens of the first `step` batches."""
        index = self.index(step)
        phase = self.phases[index]
        return phase.from_tokens + (step - self.first_steps[index]) * phase.batch_tokens

    def steps(self, tokens: int) -> int:
        """The fewest batches that hold so many tokens: what `loop.steps` is for a run of known tokens."""
        index = bisect.bisect_right([phase.from_tokens for phase in self.phases], max(tokens - 1, 0)) - 1
        phase = self.phases[index]
        return self.first_steps[index] + -(-(tokens - phase.from_tokens) // phase.batch_tokens)

    def parts(self, steps: int) -> list[tuple[Phase, int]]:
        """Each phase with its steps, in a run of so many; phases behind its end have none."""
        ends = (*self.first_steps[1:], max(steps, self.first_steps[-1]))
        return [
            (phase, max(0, min(end, steps) - first)) for phase, first, end in zip(self.phases, self.first_steps, ends, strict=True)
        ]

    def check(self, steps: int) -> None:
        """Raises ValueError when a run of so many steps ends before the last phase begins."""
        if len(self.phases) > 1 and self.first_steps[-1] >= steps:
            raise ValueError(
                f"loop.steps={steps} ends after {self.tokens(steps)} tokens, before the ramp's mark of "
                f"{self.phases[-1].from_tokens}; raise loop.steps beyond {self.first_steps[-1]} or drop the phase"
            )


def _check_mark(before: Phase, after: Phase) -> None:
    """Raises ValueError for a mark that no batch ends at, or that cuts a row of the next phase."""
    distance = after.from_tokens - before.from_tokens
    if distance <= 0:
        raise ValueError(
            f"the ramp goes backwards: the mark {after.from_tokens} follows {before.from_tokens}; each mark must be greater than "
            "the one before it"
        )
    if distance % before.batch_tokens:
        below = before.from_tokens + distance // before.batch_tokens * before.batch_tokens
        raise ValueError(
            f"the ramp's mark {after.from_tokens} is not reached by whole batches of {before.batch_size} x {before.length} tokens "
            f"from {before.from_tokens}; the nearest marks are {below} and {below + before.batch_tokens}"
        )
    if after.from_tokens % after.length:
        raise ValueError(
            f"the ramp's mark {after.from_tokens} is no multiple of the length {after.length} that begins there, so every later "
            "row would be cut in two; move the mark"
        )
