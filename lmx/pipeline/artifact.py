"""Artifacts: the folder that a stage leaves, its manifest, and what can be read back from it."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
from etils import epath

import lmx
from lmx import tokenizer as tokenizers
from lmx.checkpoint import parameters
from lmx.core import serialize, storage
from lmx.core.types import Params, Precision, PyTree
from lmx.model.activation import ACTIVATIONS
from lmx.model.config import DecoderConfig
from lmx.model.decoder import Model, build_model
from lmx.model.execution import Execution
from lmx.tokenizer import chat as chats
from lmx.tokenizer.absent import AbsentTokenizer
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

MANIFEST, MODEL, PARAMS, TOKENIZER = "manifest.json", "model.json", "params", "tokenizer"
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "sentencepiece")
_EDGE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRecord:
    """An input as the stage found it: its origin (a stage, a path, or "data" that the config reads) and its fingerprint."""

    source: str
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a stage was, and what came of it.

    Attributes:
      stage: name in its experiment.
      kind: what the artifact is.
      status: "running" until everything is written, then "finished".
      fingerprint: of config, seed and inputs.
      seed: the stage's seed.
      config: the stage's config as a `serialize.canonical` tree.
      inputs: artifacts and data by dotted field path.
      versions: libraries that wrote it; recorded, part of no fingerprint.
      started: UTC time at which the run that finished it began (ISO 8601).
      finished: UTC time of the end, None while it runs.
      tokens: tokens that went through the model.
      metrics: final figures by name.
    """

    stage: str
    kind: str
    status: Literal["running", "finished"]
    fingerprint: str
    seed: int
    config: Any
    inputs: Mapping[str, InputRecord]
    versions: Mapping[str, str]
    started: str
    finished: str | None = None
    tokens: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def seconds(self) -> float | None:
        """Wall time of the run that finished it, None while it runs."""
        if self.finished is None:
            return None
        return (datetime.datetime.fromisoformat(self.finished) - datetime.datetime.fromisoformat(self.started)).total_seconds()


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A folder written by a stage (or, without a manifest, an external file or folder of another origin)."""

    path: epath.Path
    manifest: Manifest | None = None

    @property
    def kind(self) -> str:
        """What it is; "files" when no stage has written it."""
        return self.manifest.kind if self.manifest else "files"

    def fingerprint(self) -> str:
        """Of the config and inputs that made it; of the files themselves when no stage has written it."""
        return self.manifest.fingerprint if self.manifest else digest(self.path)

    def has_model(self) -> bool:
        """Whether it holds a model."""
        return (self.path / MODEL).exists()

    def has_tokenizer(self) -> bool:
        """Whether it holds a tokenizer."""
        return (self.path / TOKENIZER).exists()

    def model_config(self) -> DecoderConfig:
        """Architecture of its model, decoded by type: the file can name no other class, and no function outside a fixed table."""
        path = self.path / MODEL
        if not path.exists():
            raise ValueError(f"{self.path} holds no model: it is of the kind {self.kind!r} and has no {MODEL}")
        try:
            return serialize.from_json(DecoderConfig, storage.read_json(path), ACTIVATIONS)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a decoder: {error}") from error

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        if not self.has_tokenizer():
            raise ValueError(f"{self.path} holds no tokenizer: it is of the kind {self.kind!r} and has no folder {TOKENIZER}/")
        return tokenizers.load(self.path / TOKENIZER)

    def chat(self) -> Chat | None:
        """How its model writes conversations, None for one that only continues text."""
        return chats.load(self.path / TOKENIZER)

    def load_params(self, abstract: PyTree | None = None, shardings: PyTree | None = None) -> Params:
        """Its model's parameters.

        Args:
          abstract: shapes and dtypes that they must have; None = those of `model.json`, in the dtype in which they were saved.
          shardings: a sharding or a pytree of them; None = the first local device.

        Raises:
          FileNotFoundError: it holds none.
          MismatchError: they are of another architecture.
          DamagedError: they were cut short or changed.
        """
        abstract = self.stored_model().abstract_params() if abstract is None else abstract
        return parameters.restore_params(self.path / PARAMS, abstract, shardings)

    def load(self, shardings: PyTree | None = None) -> "LoadedModel":
        """Its model, parameters, tokenizer and chat format; see the function `load`."""
        model = self.stored_model()
        params = parameters.restore_params(self.path / PARAMS, model.abstract_params(), shardings)
        tokenizer: Any = self.tokenizer() if self.has_tokenizer() else AbsentTokenizer(str(self.path))
        return LoadedModel(model, params, tokenizer, self.manifest, self.chat())

    def stored_model(self) -> Model:
        """The model that it describes, its parameters in the dtype in which they were saved."""
        config = self.model_config()
        saved = jax.tree.leaves(parameters.describe_params(self.path / PARAMS))
        return build_model(config, Execution(precision=Precision(params=str(saved[0].dtype) if saved else "float32")))


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready for use.

    Attributes:
      model: `apply`, `decode` and the rest.
      params: its parameters.
      tokenizer: the tokenizer that it was trained with; an `AbsentTokenizer`, which raises, for an import that had none.
      manifest: how it came to be.
      chat: how it writes conversations, None for a model that only continues text.
    """

    model: Model
    params: Params
    tokenizer: Tokenizer
    manifest: Manifest | None
    chat: Chat | None = None


def load(path: epath.PathLike, shardings: PyTree | None = None) -> LoadedModel:
    """Opens the model of a finished stage: `loaded = lmx.load("runs/quickstart/student")`.

    Args:
      path: the stage's folder in a workdir.
      shardings: a sharding or a pytree of them for the parameters; None = the first local device.

    Raises:
      ValueError: the folder is not a finished artifact, or holds no model; the message says what it is.
      MismatchError, DamagedError: the parameters are of another architecture than `model.json`, or were cut short.
    """
    return open_finished(path).load(shardings)


def is_artifact(path: epath.PathLike) -> bool:
    """Whether a stage has written, or begun to write, this folder."""
    return (storage.as_path(path) / MANIFEST).exists()


def open_finished(path: epath.PathLike) -> Artifact:
    """The artifact in a folder.

    Raises:
      ValueError: when it isn't one, or its stage hasn't finished.
    """
    folder = storage.as_path(path)
    if not folder.exists():
        raise ValueError(f"there is no artifact at {folder}: nothing exists there")
    if not is_artifact(folder):
        below = sorted(child.name for child in folder.iterdir() if is_artifact(child)) if folder.is_dir() else []
        hint = f"; it holds the artifacts {', '.join(below)}, name one of them" if below else ""
        raise ValueError(f"{folder} is not an artifact of lmx: it has no {MANIFEST}{hint}")
    manifest = read_manifest(folder)
    if manifest.status != "finished":
        raise ValueError(
            f"the stage {manifest.stage!r} in {folder} has not finished; run its experiment again, it goes on where it stopped"
        )
    return Artifact(folder, manifest)


def write_model(
    folder: epath.Path, *, config: DecoderConfig, params: Params, tokenizer: Tokenizer, chat: Chat | None = None
) -> None:
    """Writes what makes a folder a model artifact: `params/`, `tokenizer/` and `model.json`.

    Args:
      folder: of the artifact.
      config: of the model.
      params: its parameters.
      tokenizer: its tokenizer.
      chat: how it writes conversations; None = it doesn't.

    Raises:
      ValueError: for an activation function that `lmx.model.activation.ACTIVATIONS` doesn't name.
    """
    described = serialize.to_json(config, ACTIVATIONS)
    parameters.save_params(folder / PARAMS, params)
    write_tokenizer(folder, tokenizer, chat)
    storage.write_json(folder / MODEL, described)


def write_tokenizer(folder: epath.Path, tokenizer: Tokenizer, chat: Chat | None = None) -> None:
    """Writes the tokenizer of an artifact, and the chat format if there is one, into its folder `tokenizer/`."""
    target = folder / TOKENIZER
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(Path(target))
    if chat is not None:
        chat.save(Path(target))


def read_manifest(folder: epath.PathLike) -> Manifest:
    """The manifest of an artifact; ValueError when the file is damaged."""
    path = storage.as_path(folder) / MANIFEST
    try:
        return serialize.from_json(Manifest, storage.read_json(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a manifest of this version of lmx: {error}") from error


def write_manifest(folder: epath.Path, manifest: Manifest) -> None:
    """Writes the manifest of an artifact, atomically."""
    # The config is a JSON tree already, tags and all: it goes in as it is.
    tree = serialize.to_json(dataclasses.replace(manifest, config=None)) | {"config": manifest.config}
    storage.write_json(folder / MANIFEST, tree)


def versions() -> dict[str, str]:
    """Versions of Python, lmx and the libraries that decide a run's numbers."""
    installed = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "lmx": lmx.__version__, **installed}


def digest(path: epath.Path) -> str:
    """SHA-256, in hex, of a file or of all files below a folder: names, sizes, and the first and last MiB of each.

    The middle of a longer file is not read, so that a corpus or a large checkpoint costs seconds, not hours.
    """
    total = hashlib.sha256()
    for file in _files(path):
        size = file.stat().length
        total.update(f"{file.relative_to(path)}\0{size}\0".encode())
        with file.open("rb") as stream:
            total.update(stream.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                stream.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
                total.update(stream.read(_EDGE_BYTES))
    return total.hexdigest()


def _files(path: epath.Path) -> Iterator[epath.Path]:
    """The file itself, or every file below a folder in a fixed order."""
    if not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        yield from _files(child)
