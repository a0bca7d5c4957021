"""fastText classifiers: trained from labelled texts on one thread, so that the same labels give the same model.

Reference: Joulin et al. (2016), arXiv:1607.01759.
"""

import dataclasses
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fasttext

_PREFIX = "__label__"
MAX_CHARACTERS = 20_000  # of a document that a classifier reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a classifier is trained.

    Attributes:
      epochs: passes over the labels.
      learning_rate: at the start; it falls to 0.
      dim: of the word vectors.
      word_ngrams: runs of words that are hashed beside the single words.
      buckets: places that they are hashed into.
      least_count: rarer words are left out.
      seed: of initial values and order.
    """

    epochs: int = 25
    learning_rate: float = 0.5
    dim: int = 16
    word_ngrams: int = 2
    buckets: int = 1 << 17
    least_count: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.dim, self.word_ngrams, self.buckets, self.least_count) < 1 or self.learning_rate <= 0:
            raise ValueError(f"{self} must have positive numbers (the seed may be 0)")


def one_line(text: str) -> str:
    """The text as fastText reads it: lower case, on one line, nothing in it that looks like a label."""
    return " ".join(text[:MAX_CHARACTERS].lower().replace(_PREFIX, "").split())


def train(labelled: Iterable[tuple[str, str]], training: Training) -> bytes:
    """A classifier as bytes, for `load`.

    Args:
      labelled: (label, text).
      training: how.

    Raises:
      ValueError: there are fewer than two labels, or a label with white space.
    """
    pairs = [(label, one_line(text)) for label, text in labelled]
    labels = sorted({label for label, _ in pairs})
    if len(labels) < 2:
        raise ValueError(f"a classifier needs texts with at least two labels, found {len(pairs)} texts with {labels}")
    if wrong := [label for label in labels if not label or label.split() != [label]]:
        raise ValueError(f"label {wrong[0]!r} must be one word")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "labels.txt", Path(folder) / "model.bin"
        source.write_text(
            "".join(f"{_PREFIX}{label} {text}\n" for label, text in sorted(pairs)), encoding="utf-8", errors="replace"
        )
        model = fasttext.train_supervised(
            str(source),
            epoch=training.epochs,
            lr=training.learning_rate,
            dim=training.dim,
            wordNgrams=training.word_ngrams,
            bucket=training.buckets,
            minCount=training.least_count,
            seed=training.seed,
            thread=1,  # more would race, and the same labels would give another model
            verbose=0,
        )
        model.save_model(str(target))
        return target.read_bytes()


def load(data: bytes) -> Any:
    """The classifier that `train`, or fastText itself, wrote.

    Raises:
      ValueError: it is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        path.write_bytes(data)
        return fasttext.load_model(str(path))


def probabilities(model: Any, text: str) -> dict[str, float]:
    """Label -> probability, for every label of a classifier."""
    labels, values = model.predict(one_line(text).encode("utf-8", "replace").decode("utf-8"), k=-1)
    return {label.removeprefix(_PREFIX): min(float(value), 1.0) for label, value in zip(labels, values, strict=True)}
