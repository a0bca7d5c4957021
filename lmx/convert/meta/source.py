"""A directory in Meta's original Llama layout, opened for conversion."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmx.convert import interleaved, json_file
from lmx.convert.families.fields import Fields
from lmx.convert.hf.tokenizer_files import has_tokenizer
from lmx.convert.meta.parameters import read_config
from lmx.convert.meta.shards import EMBEDDING, OUTPUT, ROTARY, Checkpoint, open_shards
from lmx.convert.rules import LINEAR, LINEAR_FROM_HEADS, Entry, Rule, expand
from lmx.convert.source import TensorInfo
from lmx.tokenizer import foreign
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

PARAMS = "params.json"
TABLE = (
    Entry("embed/table", EMBEDDING),
    Entry("final_norm/gain", "norm.weight"),
    Entry("head/table", OUTPUT),
    Entry("attention_norm/gain", "layers.{layer}.attention_norm.weight"),
    Entry("attention/q/kernel", "layers.{layer}.attention.wq.weight", interleaved.KERNEL),
    Entry("attention/k/kernel", "layers.{layer}.attention.wk.weight", interleaved.KERNEL),
    Entry("attention/v/kernel", "layers.{layer}.attention.wv.weight", LINEAR),
    Entry("attention/o/kernel", "layers.{layer}.attention.wo.weight", LINEAR_FROM_HEADS),
    Entry("ffn_norm/gain", "layers.{layer}.ffn_norm.weight"),
    Entry("ffn/gate/kernel", "layers.{layer}.feed_forward.w1.weight", LINEAR),
    Entry("ffn/up/kernel", "layers.{layer}.feed_forward.w3.weight", LINEAR),
    Entry("ffn/down/kernel", "layers.{layer}.feed_forward.w2.weight", LINEAR),
)
"""Names of Meta's Llama 2, 3, 3.1 and 3.2 text models."""


class MetaSource:
    """An opened directory; see `lmx.convert.source.Source`."""

    kind = "meta"
    origin: Path | None = None

    def __init__(self, path: Path) -> None:
        """Reads params.json and the headers of the checkpoint's files, and checks them.

        Raises:
          FileNotFoundError: one of them is missing.
          ConversionError: they are damaged, or describe no model that lmx has.
        """
        self.path = path
        self.family: str | None = "llama"
        fields = Fields(json_file.read_object(path / PARAMS), str(path / PARAMS))
        shards = open_shards(path)
        try:
            self._checkpoint = Checkpoint(shards, fields.size("dim"))
            self.tensors: Mapping[str, TensorInfo] = self._checkpoint.tensors
            tied = self._checkpoint.copies.get(OUTPUT) == EMBEDDING
            self.config, self.notes = read_config(fields, self.tensors, tied)
            self.rules: tuple[Rule, ...] = expand(self.config, TABLE, "Meta Llama")
        except BaseException:
            for shard in shards:
                shard.close()
            raise
        ignored = {name: "the config determines it" for name in self.tensors if ROTARY.fullmatch(name)}
        self.ignored: Mapping[str, str] = ignored | ({OUTPUT: "it is the embedding"} if tied else {})

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop of a tensor, put together from all files.

        Raises:
          ConversionError: a file was cut short since it was opened, or the files disagree.
        """
        return self._checkpoint.read(name, start, self.tensors[name].shape[0] if stop is None else stop)

    def tokenizer(self) -> tuple[Tokenizer, Chat | None] | None:
        """The tokenizer beside the checkpoint, None when there is none.

        Raises:
          ValueError: its file is damaged.
        """
        return foreign.read(self.path, vocab_size=self.config.vocab_size) if has_tokenizer(self.path) else None

    def close(self) -> None:
        """Closes the files."""
        self._checkpoint.close()


def open_source(path: Path) -> MetaSource:
    """Opens a directory with params.json and consolidated.*.pth or consolidated.safetensors.

    Raises:
      FileNotFoundError: one of them is missing.
      ConversionError: they are damaged, or describe no model that lmx has.
    """
    return MetaSource(path)
