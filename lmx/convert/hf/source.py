"""A Hugging Face directory as a source of conversion."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lmx.convert import json_file
from lmx.convert.families.catalog import read_config
from lmx.convert.families.parts import EMBEDDING, HEAD, ROTARY_BUFFERS, check_sizes
from lmx.convert.hf.directory import View, open_views
from lmx.convert.hf.tokenizer_files import has_tokenizer
from lmx.convert.rules import Rule, expand
from lmx.convert.source import FLOATS, ConversionError, TensorInfo
from lmx.model.config import DecoderConfig, LinearHead, TiedHead
from lmx.tokenizer import foreign
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

CONFIG = "config.json"
_COMPARED_BYTES = 32 << 20
_BASE_NAME = EMBEDDING.removeprefix("model.")


class HuggingFaceSource:
    """An opened Hugging Face directory; see `lmx.convert.source.Source`."""

    kind = "hf"

    def __init__(self, path: Path) -> None:
        """Reads config and headers, and checks them.

        Raises:
          FileNotFoundError: config or weights are missing.
          ConversionError: the directory cannot be converted; the message says why.
        """
        self.path = path
        self.origin: Path | None = path
        self._views = _with_prefix(open_views(path))
        self._files = {view.file for view in self._views.values()}
        try:
            limit = len(self._views)
            where = str(path / CONFIG)
            family, config, notes = read_config(json_file.read_object(path / CONFIG), where, max_tensors=limit)
            self.family: str | None = family.name
            buffers = {name: "the config determines it" for name in self._views if ROTARY_BUFFERS.fullmatch(name)}
            self.config, tables, copies = _settle_tables(config, self._views, where)
            self.ignored: Mapping[str, str] = buffers | copies
            self.notes: tuple[str, ...] = (*notes, *tables)
            check_sizes(config, [view.shape for view in self._views.values()], where)
            self.rules: tuple[Rule, ...] = expand(self.config, family.table, family.name)
            self.tensors: Mapping[str, TensorInfo] = {name: view.info for name, view in self._views.items()}
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start:stop of a tensor."""
        return self._views[name].read(start, stop)

    def tokenizer(self) -> tuple[Tokenizer, Chat | None] | None:
        """Tokenizer and chat format of the directory; None when it has none."""
        return foreign.read(self.path, vocab_size=self.config.vocab_size) if has_tokenizer(self.path) else None

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()


def _with_prefix(views: dict[str, View]) -> dict[str, View]:
    """The names of a checkpoint of the bare model (`LlamaModel` and the like) as those of the model with its head."""
    if EMBEDDING in views or _BASE_NAME not in views:
        return views
    return {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": view for name, view in views.items()}


def _settle_tables(config: DecoderConfig, views: dict[str, View], where: str) -> tuple[DecoderConfig, list[str], dict[str, str]]:
    """Decides how many rows the vocabulary has, and whether there is a head of its own; may change the two views.

    Returns:
      The config with that vocabulary, sentences about what was decided, and tensors that are not used, with the reason.
    """
    notes: list[str] = []
    copies: dict[str, str] = {}
    if isinstance(config.head, TiedHead) and HEAD in views:
        if EMBEDDING not in views:
            views[EMBEDDING] = views.pop(HEAD)
            notes.append(f"the tied embedding is stored as {HEAD} only")
        else:
            _check_copy(views, where)
            copies[HEAD] = "it is a copy of the embedding"
    if EMBEDDING not in views or len(views[EMBEDDING].shape) != 2:
        return config, notes, copies  # the check of names and shapes says it
    rows = views[EMBEDDING].shape[0]
    if isinstance(config.head, LinearHead) and HEAD in views and len(views[HEAD].shape) == 2 and views[HEAD].shape[0] != rows:
        head_rows = views[HEAD].shape[0]
        views[EMBEDDING] = views[EMBEDDING].with_rows(head_rows)
        done = "filled with rows of zeros" if head_rows > rows else "cut, since the rest can never be an output,"
        notes.append(f"{EMBEDDING} has {rows} rows and {HEAD} {head_rows}: the embedding is {done} to {head_rows}")
        rows = head_rows
    if rows != config.vocab_size:
        notes.append(f"{where} says vocab_size={config.vocab_size}, but the tables have {rows} rows: the model keeps those")
    return dataclasses.replace(config, vocab_size=rows), notes, copies


def _check_copy(views: dict[str, View], where: str) -> None:
    """A tied head that is stored must be the embedding, bit for bit; the longer of the two becomes the embedding."""
    embedding, head = views[EMBEDDING], views[HEAD]
    advice = "set tie_word_embeddings to false if the head is one of its own, or remove it from the checkpoint"
    same_form = len(embedding.shape) == len(head.shape) == 2 and embedding.shape[1] == head.shape[1]
    if not same_form or embedding.entry.dtype != head.entry.dtype or embedding.info.dtype not in FLOATS:
        raise ConversionError(
            f"{where} ties the head to the embedding, but {HEAD} is {head.info.dtype}{list(head.shape)} and {EMBEDDING} "
            f"{embedding.info.dtype}{list(embedding.shape)}; {advice}"
        )
    common = min(embedding.shape[0], head.shape[0])
    step = max(1, _COMPARED_BYTES // max(1, embedding.shape[1] * 4))
    for start in range(0, common, step):
        stop = min(common, start + step)
        if not np.array_equal(embedding.read(start, stop).view(np.uint8), head.read(start, stop).view(np.uint8)):
            raise ConversionError(
                f"{where} ties the head to the embedding, but {HEAD} differs from {EMBEDDING} in rows {start} to {stop}; {advice}"
            )
    if head.shape[0] > embedding.shape[0]:
        views[EMBEDDING], views[HEAD] = head, embedding


def open_source(path: Path) -> HuggingFaceSource:
    """Opens what lies at `path`; see `HuggingFaceSource`."""
    return HuggingFaceSource(path)
