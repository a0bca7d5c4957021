"""The TensorFlow Datasets builder of the embedded corpus; it needs neither a download nor TensorFlow."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from lmx.data.python_corpus import collect

KINDS: dict[str, Callable[[tuple[str, ...]], Iterator[collect.Document]]] = {"prose": collect.prose, "code": collect.code}


@dataclasses.dataclass(eq=False)
class PythonCorpusConfig(tfds.core.BuilderConfig):
    """Which documents.

    Attributes:
      kind: "prose" or "code".
      packages: installed packages beside the standard library.
    """

    kind: str = "prose"
    packages: tuple[str, ...] = ()


def corpus_config(kind: str, packages: tuple[str, ...] = ()) -> PythonCorpusConfig:
    """A config whose name carries the fingerprint, so that another Python prepares a dataset of its own."""
    name = f"{kind}-{collect.corpus_fingerprint(packages)[:16]}"
    return PythonCorpusConfig(name=name, kind=kind, packages=packages)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Documents of this Python installation: splits "train" and "heldout", disjoint by document."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "kind": tfds.features.Text(), "name": tfds.features.Text()}
            ),
            description="Documentation topics, docstrings and source code of the Python installation that prepared it.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {"train": self._generate_examples(False), "heldout": self._generate_examples(True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[str, dict[str, str]]]:
        config = self.builder_config
        for document in KINDS[config.kind](config.packages):
            if collect.held_out(document.name) == held_out:
                yield document.name, dataclasses.asdict(document)
