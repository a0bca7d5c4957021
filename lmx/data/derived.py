"""Sources made of other sources: two as the splits of one, several as one, the long texts of one, problems with answers."""

import dataclasses

from lmx.data import files
from lmx.data.generated import GeneratedTasks
from lmx.data.sources import Row, Rows, Source, check_split, field_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Two sources as the splits of one: held-out files kept apart, or a smaller held-out part than the source's own.

    Attributes:
      train: its split "train".
      heldout: what is held out.
      heldout_split: the split of `heldout` that is read as "heldout": "train" for files, which have no other.
    """

    train: Source
    heldout: Source
    heldout_split: str = "train"

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"."""
        check_split(self, split, ("train", "heldout"))
        return self.train.load("train") if split == "train" else self.heldout.load(self.heldout_split)

    def fingerprint(self) -> str:
        """Those of both."""
        return f"{self.train.fingerprint()} {self.heldout.fingerprint()}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joined:
    """The rows of several sources, one source after the other.

    Attributes:
      sources: at least one; they must agree in the fields that are read.
    """

    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources is empty; join at least one source")

    def load(self, split: str) -> Rows:
        """The rows of the split of each."""
        return files.Concatenated([source.load(split) for source in self.sources])

    def fingerprint(self) -> str:
        """Those of all."""
        return " ".join(source.fingerprint() for source in self.sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Long:
    """The rows of a source whose text is long.

    Attributes:
      source: any source.
      min_bytes: UTF-8 bytes that `field` must have.
      field: what is measured.
    """

    source: Source
    min_bytes: int
    field: str = "text"

    def load(self, split: str) -> Rows:
        """The long rows of the split; reads each row once to decide.

        Raises:
          ValueError: there are none.
        """
        rows = self.source.load(split)
        sizes = [len(field_of(rows[i], self.field, self.source, i).encode("utf-8", "replace")) for i in range(len(rows))]
        chosen = [index for index, size in enumerate(sizes) if size >= self.min_bytes]
        if not chosen:
            raise ValueError(
                f"no row of the split {split!r} of {self.source} has min_bytes={self.min_bytes}; "
                f"its longest has {max(sizes, default=0)}"
            )
        return files.Selected(rows, chosen)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolvedTasks:
    """Documents of solved problems, a line each: rows {"text"}.

    Attributes:
      problems: the problems; document i holds the next `per_document` of them.
      per_document: problems of a document.
      form: of a line, with "{prompt}" and "{answer}" in it.
    """

    problems: GeneratedTasks
    per_document: int = 8
    form: str = "Q: {prompt}\nA: {answer}"

    def __post_init__(self) -> None:
        if self.per_document < 1 or min(self.problems.count, self.problems.heldout_count) < self.per_document:
            raise ValueError(
                f"per_document={self.per_document} must lie in 1..{min(self.problems.count, self.problems.heldout_count)}, the "
                "problems of the smaller split"
            )
        if "{prompt}" not in self.form or "{answer}" not in self.form:
            raise ValueError(f"form={self.form!r} needs {{prompt}} and {{answer}} in it")

    def load(self, split: str) -> Rows:
        """Rows of "train" or "heldout"."""
        return _Solved(self, self.problems.load(split))

    def fingerprint(self) -> str:
        """That of the problems."""
        return f"solved 1, {self.problems.fingerprint()}"


@dataclasses.dataclass(frozen=True)
class _Solved:
    config: SolvedTasks
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows) // self.config.per_document

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        first = index * self.config.per_document
        solved = (self.rows[i] for i in range(first, first + self.config.per_document))
        return {"text": "\n".join(self.config.form.format(prompt=row["prompt"], answer=row["answer"]) for row in solved)}
