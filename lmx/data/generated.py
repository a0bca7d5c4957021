"""Generated problems as sources of rows: each row is a pure function of (seed, split, index)."""

import dataclasses
import hashlib
import random
from collections.abc import Callable

from lmx.data.sources import Row, Rows, check_split
from lmx.data.tasks import Problem, Task, near_miss

# Raise it whenever the same config would draw other rows: it is the sources' fingerprint.
GENERATION = "generated tasks 1"
MAX_DRAWS = 10_000


def held_out(prompt: str, one_in: int) -> bool:
    """Whether a prompt belongs to the held-out split; it depends on the prompt alone, so no prompt is in both."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big") % one_in == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedTasks:
    """Prompts with their only right answers: rows {"task", "prompt", "answer"}.

    Row i is of task `i % len(tasks)`, so tasks have equal shares. Held-out prompts never occur in training, whatever the seeds are;
    inside a split an easy prompt may occur several times.

    Attributes:
      tasks: what is asked, and how hard it is.
      count: rows of the split "train".
      heldout_count: rows of the split "heldout".
      heldout_one_in: every how manieth prompt is held out.
      seed: of the draws; another seed gives other rows of the same splits.
    """

    tasks: tuple[Task, ...]
    count: int
    heldout_count: int = 500
    heldout_one_in: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one task of lmx.data.tasks")
        if self.count < 1 or self.heldout_count < 1 or self.heldout_one_in < 2:
            raise ValueError(
                f"count={self.count} and heldout_count={self.heldout_count} must be at least 1, "
                f"heldout_one_in={self.heldout_one_in} at least 2"
            )

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"."""
        check_split(self, split, ("train", "heldout"))
        return DrawnRows(self, split, _answer_row)

    def fingerprint(self) -> str:
        """The version of the generator: the rest is in the config."""
        return GENERATION


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratedPreferences:
    """Right answers preferred to near misses: rows {"task", "prompt", "answer", "chosen", "rejected"}.

    Attributes:
      problems: where prompts and answers come from; the splits are its splits.
    """

    problems: GeneratedTasks

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"."""
        check_split(self, split, ("train", "heldout"))
        return DrawnRows(self.problems, split, _preference_row)

    def fingerprint(self) -> str:
        """The version of the generator: the rest is in the config."""
        return GENERATION


@dataclasses.dataclass(frozen=True)
class DrawnRows:
    """Rows drawn on access.

    Attributes:
      config: tasks, counts and seed.
      split: "train" or "heldout".
      to_row: (task name, problem, random generator) -> row.
    """

    config: GeneratedTasks
    split: str
    to_row: Callable[[str, Problem, random.Random], Row]

    def __len__(self) -> int:
        return self.config.count if self.split == "train" else self.config.heldout_count

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        task = self.config.tasks[index % len(self.config.tasks)]
        generator = random.Random(f"{self.config.seed}/{self.split}/{index}")
        for _ in range(MAX_DRAWS):
            problem = task.draw(generator)
            if held_out(problem.prompt, self.config.heldout_one_in) == (self.split == "heldout"):
                return self.to_row(task.name, problem, generator)
        raise ValueError(
            f"{task} gave no prompt of the split {self.split!r} in {MAX_DRAWS} draws; make it harder, so that it has more prompts"
        )


def _answer_row(task: str, problem: Problem, generator: random.Random) -> Row:
    del generator
    return {"task": task, "prompt": problem.prompt, "answer": problem.answer}


def _preference_row(task: str, problem: Problem, generator: random.Random) -> Row:
    return {**_answer_row(task, problem, generator), "chosen": problem.answer, "rejected": near_miss(problem, generator)}
