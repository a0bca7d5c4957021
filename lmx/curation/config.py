"""A curation as a value: where pages come from, the steps that they go through, and what is written."""

import dataclasses
import re
from collections.abc import Callable

from lmx.core.overrides import nearest
from lmx.curation.document import Document, DocumentStep
from lmx.curation.pipelines.flow import CorpusStep
from lmx.curation.pipelines.source import Source

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def everything(document: Document) -> bool:
    """Every document."""
    del document
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongerThan:
    """Documents of at least `words` words (about 1.3 tokens each in English): those for long contexts."""

    words: int

    def __call__(self, document: Document) -> bool:
        """Whether a document is one of them."""
        return len(document.text.split()) >= self.words


@dataclasses.dataclass(frozen=True, kw_only=True)
class FieldIs:
    """Documents whose field `field` has one of `values`, such as a language or a topic."""

    field: str
    values: tuple[str, ...]

    def __call__(self, document: Document) -> bool:
        """Whether a document is one of them."""
        return str(document.meta.get(self.field)) in self.values


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSet:
    """Documents that are written together; one document may be in several sets.

    Attributes:
      name: its folder in the output.
      accepts: which documents.
      shards: files; a document's key chooses its own, and one worker sorts each in memory: give big corpora many.
    """

    name: str = "documents"
    accepts: Callable[[Document], bool] = everything
    shards: int = 4

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in ("dropped", "set_aside", "work"):
            raise ValueError(
                f"output set {self.name!r} names a folder: letters, digits, '_' and '-', and none that curation uses itself"
            )
        if not 1 <= self.shards <= 99_999:
            raise ValueError(f"the output set {self.name!r} has shards={self.shards}; it must lie in 1..99999")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curation:
    """A whole curation.

    Attributes:
      name: title of the card, and the folder in `runs/` unless another is given.
      source: where the pages are.
      steps: what they go through, in order.
      outputs: what is written.
      examples: how many dropped documents the card shows for each reason.
      most_set_aside: a step that fails with a greater share of its documents than this stops the run: it is the step that is
        broken, or the input is something else than it was taken for.
    """

    name: str
    source: Source
    steps: tuple[DocumentStep | CorpusStep, ...]
    outputs: tuple[OutputSet, ...] = (OutputSet(),)
    examples: int = 3
    most_set_aside: float = 0.1

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} names a folder: letters, digits, '_' and '-', beginning with a letter")
        if not hasattr(self.source, "read") or not hasattr(self.source, "check"):
            raise ValueError(
                f"source must have `read` and `check`, such as JsonPages(path=...), found {type(self.source).__name__}"
            )
        self._check_steps()
        names = [output.name for output in self.outputs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"outputs has the sets {', '.join(names) or 'none'}; at least one, and each name once")
        if self.examples < 0 or not 0 <= self.most_set_aside <= 1:
            raise ValueError(f"examples={self.examples} must be at least 0, most_set_aside={self.most_set_aside} in [0, 1]")

    def _check_steps(self) -> None:
        seen: set[str] = set()
        for place, step in enumerate(self.steps):
            if (
                isinstance(step, type)
                or not dataclasses.is_dataclass(step)
                or not (hasattr(step, "open") or hasattr(step, "expand"))
            ):
                raise ValueError(
                    f"steps.{place} must be a step (a frozen dataclass with `open` or `expand`), found {type(step).__name__}"
                )
            if not _NAME.fullmatch(step.name):
                raise ValueError(f"steps.{place}.name is {step.name!r}; use letters, digits, '_' and '-', beginning with a letter")
            if step.name in seen or step.name in ("read", "write"):
                raise ValueError(f"steps.{place} is the second step called {step.name!r}; give it a `name` of its own")
            seen.add(step.name)

    def step(self, name: str) -> DocumentStep | CorpusStep:
        """The step of a name.

        Raises:
          ValueError: there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        names = [step.name for step in self.steps]
        raise ValueError(f"there is no step {name!r}; did you mean {', '.join(nearest(name, names)) or ', '.join(names)}?")
