"""fastText classifiers as steps: a quality score, a topic."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from lmx.curation import storage
from lmx.curation.document import Document, Dropped, Outcome
from lmx.curation.functions import classifier
from lmx.curation.functions.records import Fields, from_json
from lmx.curation.pipelines.flow import Resources

Labelled = Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """Labelled texts in files of JSON lines, {"label": label, "text": text}.

    Attributes:
      path: path or pattern, on any filesystem of Beam.
    """

    path: str

    def __call__(self) -> Iterator[tuple[str, str]]:
        """(label, text) of every line."""
        for path, _ in storage.matching(self.path):
            for number, line in enumerate(storage.read_bytes(path).splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    row = from_json(line, Fields(keep=("label",)))
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
                if "label" not in row.meta:
                    raise ValueError(f"{path}, line {number}: a labelled text needs the field 'label'")
                yield str(row.meta["label"]), row.text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """A fastText classifier: one that is there (`model`), or one to be trained before the graph runs (`labels`).

    Attributes:
      model: path of a fastText .bin file, on any filesystem of Beam.
      labels: a `LabelFiles`, or a function without arguments that gives (label, text) pairs.
      training: how it is trained.
    """

    model: str | None = None
    labels: Callable[[], Labelled] | None = None
    training: classifier.Training = classifier.Training()

    def __post_init__(self) -> None:
        if (self.model is None) == (self.labels is None):
            raise ValueError("a Classifier needs either a model (the path of a .bin file) or labels to be trained from, not both")

    def prepared(self, resources: Resources, name: str) -> "Classifier":
        """The classifier with a model; trains it if need be."""
        if self.labels is None:
            return self
        labelled = list(self.labels())
        resources.tell(f"{name}: training a classifier on {len(labelled):,} labelled texts")
        return Classifier(model=resources.put(f"{name}.bin", classifier.train(labelled, self.training)))

    def probabilities(self) -> Callable[[str], dict[str, float]]:
        """text -> label -> probability."""
        if self.model is None:
            raise ValueError("the classifier has not been trained; curate() does it before the graph runs")
        return functools.partial(classifier.probabilities, _loaded(storage.absolute(self.model)))


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> Any:
    return classifier.load(storage.cached_bytes(path))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """Sets a field to the probability of a label, and drops documents below a limit.

    Attributes:
      classifier: the classifier.
      label: the good one.
      least: probability, 0 = drop none (let `select.KeepShare` follow).
      field: where the probability goes.
      name: in the card.
    """

    classifier: Classifier
    label: str
    least: float = 0.5
    field: str = "quality"
    name: str = "quality"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise ValueError(f"the step {self.name!r} has least={self.least}; a probability lies in [0, 1]")

    def prepare(self, resources: Resources) -> Self:
        """Trains the classifier if it is to be trained."""
        prepared = dataclasses.replace(self, classifier=self.classifier.prepared(resources, self.name))
        if self.label not in (labels := prepared.classifier.probabilities()("")):
            raise ValueError(
                f"the step {self.name!r} asks for the label {self.label!r}; the classifier has {', '.join(sorted(labels))}"
            )
        return prepared

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(_judge_quality, step=self, probabilities=self.classifier.probabilities())


def _judge_quality(document: Document, *, step: Quality, probabilities: Callable[[str], dict[str, float]]) -> Outcome:
    value = round(probabilities(document.text)[step.label], 4)
    if value < step.least:
        return Dropped(f"{step.field}_too_low", f"{value}, at least {step.least}")
    return document.tell(**{step.field: value})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """Sets a field to the most likely label.

    Attributes:
      classifier: the classifier.
      field: where the label goes.
      name: in the card.
    """

    classifier: Classifier
    field: str = "topic"
    name: str = "topic"

    def prepare(self, resources: Resources) -> Self:
        """Trains the classifier if it is to be trained."""
        return dataclasses.replace(self, classifier=self.classifier.prepared(resources, self.name))

    def open(self) -> Callable[[Document], Outcome]:
        """As `DocumentStep.open`."""
        return functools.partial(_set_topic, field=self.field, probabilities=self.classifier.probabilities())


def _set_topic(document: Document, *, field: str, probabilities: Callable[[str], dict[str, float]]) -> Outcome:
    found = probabilities(document.text)
    return document.tell(**{field: max(sorted(found), key=found.__getitem__)})
