"""Opening a checkpoint for use: its model on the devices it is to run on, its chat format, an engine over it."""

import dataclasses

import jax
from etils import epath
from jax.sharding import Mesh

from lmx.core import storage
from lmx.core.logging import logger
from lmx.core.types import Precision
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model, build_model
from lmx.pipeline import artifact
from lmx.pipeline.artifact import LoadedModel
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sharding.mesh import MeshConfig, build_mesh
from lmx.sharding.place import shardings
from lmx.sharding.rules import DEFAULT_RULES
from lmx.tokenizer import chat as chats
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.templates import BUILT_IN
from lmx.train.execution import build_execution

CONTEXT = 8_192  # tokens of a row where nothing else is asked for: caches of the longest contexts fill any memory


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
      name: of its folder.
      loaded: model, parameters, tokenizer, chat format.
      mesh: devices it lies on, None = one.
    """

    name: str
    loaded: LoadedModel
    mesh: Mesh | None = None

    @property
    def fingerprint(self) -> str:
        """Of the model."""
        manifest = self.loaded.manifest
        return manifest.fingerprint if manifest is not None else "0" * 64

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a text or a turn."""
        turns = self.loaded.chat.stop_ids if self.loaded.chat is not None else ()
        return tuple(dict.fromkeys((self.loaded.tokenizer.eos_id, *turns)))

    def context(self, asked: int | None, least: int = 0) -> int:
        """Tokens of a row: what is asked for, else the model's max_length but at most CONTEXT (and at least `least`).

        Raises:
          ValueError: more than the model can read.
        """
        limit = self.loaded.model.config.max_length
        if asked is None:
            return min(limit, max(CONTEXT, least))
        if not 2 <= asked <= limit:
            raise ValueError(f"--max-length {asked} must lie in 2..{limit}, the most that the model can read")
        return asked

    def engine(self, *, slots: int, max_length: int, kv_dtype: str | None = None, decode_steps: int = 8) -> Engine:
        """An engine over it; with fewer `decode_steps` tokens come one by one, with more they cost less."""
        tokenizer = self.loaded.tokenizer
        return Engine(
            self.loaded.model,
            self.loaded.params,
            config=EngineConfig(slots=slots, max_length=max_length, kv_dtype=kv_dtype, decode_steps=decode_steps),
            eos_ids=self.stop_ids,
            pad_id=tokenizer.pad_id,
            tokenizer=tokenizer,
            vocab_size=min(tokenizer.vocab_size, self.loaded.model.config.vocab_size),
            mesh=self.mesh,
        )


def open_checkpoint(path: epath.PathLike, *, mesh: str | None = None, chat_template: str | None = None) -> Checkpoint:
    """Opens a finished artifact of lmx that holds a language model.

    Args:
      path: folder of a stage, or of a converted model.
      mesh: sizes of mesh axes, such as "fsdp=2,tensor=4"; None = one device.
      chat_template: name of a built-in template, or a file of Jinja source, in place of the model's own; None = its own.

    Raises:
      ValueError: the folder holds something else; the message says what, and what to do.
    """
    folder = storage.as_path(path)
    _refuse_foreign(folder)
    found = artifact.open_finished(folder)
    model = found.stored_model()
    if isinstance(model.config.head, ScalarHead):
        raise ValueError(f"{folder} holds a reward model, which writes no text; name a language model")
    device_mesh, places = None, None
    if mesh is not None:
        device_mesh = build_mesh(parse_mesh(mesh))
        model = _on_mesh(model, device_mesh)
        places = shardings(model.axes, model.abstract_params(), device_mesh, DEFAULT_RULES)
    loaded = dataclasses.replace(found.load(places), model=model)
    if chat_template is not None:
        loaded = dataclasses.replace(loaded, chat=chosen_chat(chat_template, loaded.tokenizer))
    if loaded.tokenizer.vocab_size > model.config.vocab_size:
        logger.warning(
            "the tokenizer of %s has %d ids, more than the model's vocabulary of %d",
            folder,
            loaded.tokenizer.vocab_size,
            model.config.vocab_size,
        )
    return Checkpoint(folder.name, loaded, device_mesh)


def parse_mesh(text: str) -> MeshConfig:
    """Sizes of mesh axes from "data=1,fsdp=2,tensor=4"; axes that are left out are 1, one may be -1.

    Raises:
      ValueError: something else stands there.
    """
    names = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in names or name in sizes or not size.removeprefix("-").isdecimal():
            raise ValueError(f"--mesh takes sizes of the axes {', '.join(names)}, such as fsdp=2,tensor=4; found {text!r}")
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def chosen_chat(template: str, tokenizer: Tokenizer) -> Chat:
    """A chat format by name, or from a file of Jinja source (then EOS ends turns).

    Raises:
      ValueError: there is no such name or file, or the tokenizer lacks the format's tokens.
    """
    if template in BUILT_IN:
        return chats.built_in(template, tokenizer)
    path = storage.as_path(template)
    if not path.is_file():
        raise ValueError(f"--chat-template {template} is none of {', '.join(BUILT_IN)}, and no file of a Jinja template")
    try:
        return Chat(path.read_text())
    except ValueError as error:
        raise ValueError(f"--chat-template {path}: {error}") from error


def _on_mesh(model: Model, mesh: Mesh) -> Model:
    params = str(jax.tree.leaves(model.abstract_params())[0].dtype)
    return build_model(model.config, build_execution(mesh, DEFAULT_RULES, precision=Precision(params=params)))


def _refuse_foreign(path: epath.Path) -> None:
    """Raises ValueError for checkpoints of other programs, which are to be converted first."""
    if artifact.is_artifact(path):
        return
    kind = None
    if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
        kind = "GGUF"
    elif path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors"))):
        kind = "a Hugging Face checkpoint"
    elif path.is_dir() and (path / "params.json").exists():
        kind = "Meta's original layout"
    elif path.is_dir() and (path / "config.json").exists():
        kind = "a Hugging Face checkpoint"
    if kind is not None:
        raise ValueError(f"{path} is {kind}, not an artifact of lmx: run `lmx convert {path} DIR` first, then use DIR")
