"""The stage that makes a mixture of experts out of a dense model, layer by layer: a layer's experts are all that is in memory."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from lmx.checkpoint import record as records
from lmx.checkpoint.streaming import ParameterReader, ParameterWriter, block_rows
from lmx.core import serialize, storage
from lmx.core.logging import progress
from lmx.core.types import Array
from lmx.model.activation import ACTIVATIONS
from lmx.model.config import DecoderConfig, MoEConfig
from lmx.model.decoder import build_model
from lmx.model.upcycling import Upcycling, check_upcycling, copies, layer_key, upcycle, upcycle_layer
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, input_field
from lmx.stages import training as stage_training


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upcycle:
    """A mixture of experts whose experts are cut out of a dense model's FFNs.

    Attributes:
      source: the dense model.
      target: the same architecture with a `MoEConfig` in the place of its FFNs; its vocabulary may lack the padding rows.
      settings: what is drawn at random.
    """

    produces: ClassVar[str] = "model"
    source: Ref | External = input_field("model")
    target: DecoderConfig
    settings: Upcycling = Upcycling()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        del upstream
        return self.target

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["source"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        check_upcycling(stage_training.require_language_model(upstream, "source"), self.target)
        if not any(isinstance(block.ffn, MoEConfig) for block in self.target.layer_pattern):
            raise ValueError("the target has no mixture of experts: there is nothing to make")
        pieces = upstream["source"].vocab_size
        if pieces is not None:
            stage_training.check_vocabulary(pieces, self.target)

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; one process writes, and an interrupted run begins anew."""
        source = inputs["source"]
        dense = source.model_config()
        if jax.process_index() == 0:
            self._write(source.path / artifacts.PARAMS, dense, context)
            artifacts.write_tokenizer(context.workdir, source.tokenizer(), source.chat())
            storage.write_json(context.workdir / artifacts.MODEL, serialize.to_json(self.target, ACTIVATIONS))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("lmx: upcycled")
        return StageResult(metrics=self._figures(dense))

    def _write(self, params: epath.Path, dense: DecoderConfig, context: StageContext) -> None:
        """The target's parameters, streamed from the dense model's."""
        key = jax.random.key(context.seed)
        reader = ParameterReader(params)
        saved = records.abstract_tree(_described(reader))
        abstract = jax.eval_shape(partial(upcycle, dense=dense, target=self.target, settings=self.settings), saved, key=key)
        leaves = dict(zip(records.paths(abstract), jax.tree.leaves(abstract), strict=True))
        target = context.workdir / artifacts.PARAMS
        if target.exists():
            target.rmtree()
        writer = ParameterWriter(target, {name: (leaf.shape, str(leaf.dtype), _leading(name)) for name, leaf in leaves.items()})
        try:
            made = {f"blocks/{place}/ffn/": moe for place, moe in self._mixtures()}
            for name, leaf in leaves.items():
                if not name.startswith(tuple(made)):
                    _copy(reader, writer, name, leaf.shape)
            layers = [(place, moe, repeat) for place, moe in self._mixtures() for repeat in range(dense.num_repeats)]
            for place, moe, repeat in progress(layers, description=f"{context.name} layers"):
                _write_layer(reader, writer, place, repeat, moe, layer_key(key, place, repeat), self.settings)
            writer.finish()
        finally:
            writer.abort()

    def _mixtures(self) -> list[tuple[int, MoEConfig]]:
        """(place of the layer pattern, its mixture of experts)."""
        return [(place, block.ffn) for place, block in enumerate(self.target.layer_pattern) if isinstance(block.ffn, MoEConfig)]

    def _figures(self, dense: DecoderConfig) -> dict[str, float]:
        place, moe = self._mixtures()[0]
        ffn: Any = dense.layer_pattern[place].ffn
        count, dropped = copies(ffn.ffn_dim, moe.num_experts, moe.expert.ffn_dim)
        return {"parameters": build_model(self.target).num_params(), "copies": count, "dropped_columns": dropped}


def _described(reader: ParameterReader) -> dict[str, dict[str, Any]]:
    """Path -> {"shape", "dtype"} of what a reader reads."""
    return {name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for name, leaf in reader.shapes.items()}


def _copy(reader: ParameterReader, writer: ParameterWriter, name: str, shape: tuple[int, ...]) -> None:
    """A parameter that stays as it is, but for rows at the end of a table that the target lacks."""
    leading = _leading(name)
    for index in np.ndindex(*shape[:leading]):
        rest = shape[leading:]
        rows = block_rows(rest)
        for start in range(0, rest[0], rows):
            stop = min(start + rows, rest[0])
            writer.write(name, index, start, reader.read(name, index, start, stop))


def _write_layer(
    reader: ParameterReader, writer: ParameterWriter, place: int, repeat: int, moe: MoEConfig, key: Array, settings: Upcycling
) -> None:
    """Makes the mixture of one layer and writes it."""
    prefix = f"blocks/{place}/ffn"
    ffn = {}
    for name in ("gate", "up", "down"):
        leaf = f"{prefix}/{name}/kernel"
        ffn[name] = {"kernel": reader.read(leaf, (repeat,), 0, reader.shapes[leaf].shape[1])}
    made = _made(ffn, key, moe, settings)
    for path, leaf in zip(records.paths(made), jax.tree.leaves(made), strict=True):
        name, values = f"{prefix}/{path}", np.asarray(leaf)
        if _leading(name) == 1:
            writer.write(name, (repeat,), 0, values)
        else:
            for expert, kernel in enumerate(values):
                writer.write(name, (repeat, expert), 0, kernel)


@partial(jax.jit, static_argnums=(2, 3))
def _made(ffn: Any, key: Array, moe: MoEConfig, settings: Upcycling) -> Any:
    return upcycle_layer(ffn, moe, key, settings)


def _leading(name: str) -> int:
    """How many leading axes of a parameter count layers and experts."""
    return 0 if not name.startswith("blocks/") else 2 if "/experts/" in name else 1
