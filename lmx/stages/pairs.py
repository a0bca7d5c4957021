"""Preference pairs from a file that a stage wrote, read like any other data."""

import dataclasses

from lmx.core import storage
from lmx.data.sources import JsonLines
from lmx.data.supervised import Preferences
from lmx.pipeline.artifact import Artifact
from lmx.tokenizer.prompt import PromptTemplate

SPLITS = ("train", "heldout")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFormat:
    """How sampled pairs become batches; see `lmx.data.supervised.Preferences`."""

    template: PromptTemplate = PromptTemplate()
    drop_too_long: bool = False

    def read(self, artifact: Artifact, split: str) -> Preferences:
        """The pairs of one split. Each split is a file of its own, so the result is read with `split="train"`."""
        path = artifact.path / f"{split}.jsonl"
        if not path.exists():
            raise ValueError(f"{artifact.path} holds no preference pairs: {path.name} is missing")
        source = JsonLines(path=str(storage.as_path(path)))
        return Preferences(source=source, template=self.template, drop_too_long=self.drop_too_long)
