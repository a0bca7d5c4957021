"""The mean of a run's kept checkpoints, as a config."""

import dataclasses

from lmx.train.config import LoopConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The mean of the newest checkpoints that `loop.keep_every` keeps, read one at a time when the run is over.

    Only these count, not those that an interruption or the best metric left, so the mean doesn't depend on restarts.

    Attributes:
      last: how many of them.

    Reference: Grattafiori et al. (2024), arXiv:2407.21783, section 3.4.3 (Polyak averaging of checkpoints).
    """

    last: int

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"average.last={self.last} must be at least 1")

    def steps(self, loop: LoopConfig) -> tuple[int, ...]:
        """Steps of the checkpoints to average, ascending.

        Raises:
          ValueError: the loop doesn't make or keep as many.
        """
        every = loop.keep_every
        if every is None or loop.checkpoint_every is None or every % loop.checkpoint_every:
            raise ValueError(
                f"average.last={self.last} checkpoints need loop.keep_every, a multiple of loop.checkpoint_every="
                f"{loop.checkpoint_every}, but it is {every}"
            )
        if self.last > loop.steps // every:
            raise ValueError(
                f"average.last={self.last} is more than the {loop.steps // every} checkpoints that loop.keep_every={every} keeps "
                f"of {loop.steps} steps"
            )
        newest = loop.steps // every * every
        return tuple(range(newest - (self.last - 1) * every, newest + 1, every))
