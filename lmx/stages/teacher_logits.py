"""The stage that writes down what a teacher thinks of every token of a text, for students to learn from later."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lmx.core import fingerprint as fingerprints
from lmx.core.logging import progress
from lmx.core.types import Array, Params, Precision
from lmx.data.batches import LMBatch, lm_batch_spec
from lmx.data.loader import Loader
from lmx.data.teacher_form import Samples, TeacherForm, TeacherRow, TopK
from lmx.data.teacher_store import StoreHeader, StoreWriter
from lmx.data.text import PackedText
from lmx.kernels import head
from lmx.losses import stored_teacher
from lmx.model.accounting import flops_per_token
from lmx.model.decoder import Model, build_model
from lmx.pipeline import artifact as artifacts
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.sharding import place
from lmx.sharding.rules import DEFAULT_RULES, Rules
from lmx.stages import training as stage_training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.execution import build_execution

View = Callable[[Params, LMBatch, Array], tuple[Array, Array, Array]]  # (params, rows, their numbers) -> ids, values, tail


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherLogits:
    """A store of a teacher's distribution over the next token, cut down to top k or samples, row by row of a packed text.

    The rows are those that a training stage reads with the same data, length and seed; its batch size doesn't matter. An
    interrupted run goes on with the first shard that is missing. Every process of a run writes its own rows.

    Attributes:
      teacher: the language model; its tokenizer packs the text.
      data: the text.
      form: what is kept of each token; `form.bytes_per_token(vocab_size)` says what it costs.
      batch_size: rows of a global batch that the teacher reads at once.
      length: T, tokens of a row.
      batches: batches of the split "train".
      heldout: store the whole split "heldout" too, so that students can be evaluated.
      batches_per_shard: batches of which a shard holds a process's part: what an interruption can cost. (An ArrayRecord file takes
        128 KiB however little it holds.)
      data_seed: of the order of the rows; None = the stage's own.
      precision: dtypes of parameters and activations.
      rules: logical axis -> mesh axes.
    """

    produces: ClassVar[str] = "teacher_logits"
    teacher: Ref | External = input_field("model")
    data: PackedText
    form: TeacherForm = TopK(k=64)
    batch_size: int
    length: int
    batches: int
    heldout: bool = False
    batches_per_shard: int = 16
    data_seed: int | None = None
    precision: Precision = Precision()
    rules: Rules = DEFAULT_RULES

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "batches", "batches_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def rows(self) -> int:
        """Rows of the split "train"."""
        return self.batches * self.batch_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        teacher = stage_training.require_language_model(upstream, "teacher")
        stage_training.check_length(self.length, teacher, "length")
        if isinstance(self.form, TopK) and self.form.k > teacher.vocab_size:
            raise ValueError(f"form.k={self.form.k} exceeds the teacher's vocab_size={teacher.vocab_size}")

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["teacher"].vocab_size

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        teacher = stage_training.require_language_model(upstream, "teacher")
        tokens = self.rows * self.length
        flops = tokens * flops_per_token(teacher, self.length, training=False)
        return Workload(steps=self.batches, tokens=tokens, flops=flops)

    def batches_of(self, tokenizer: Tokenizer, seed: int, split: str) -> Loader:
        """This process's rows: endless and shuffled for "train", one ordered pass over "heldout"."""
        return self.data.loader(
            tokenizer,
            batch_size=self.batch_size,
            length=self.length,
            seed=seed if split == "train" else None,
            split=split,
            epochs=None if split == "train" else 1,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`; finished shards are kept over an interruption."""
        teacher, mesh = inputs["teacher"], stage_training.stage_mesh(context)
        config, tokenizer = teacher.model_config(), inputs["teacher"].tokenizer()
        seed = context.seed if self.data_seed is None else self.data_seed
        loaders = {split: self.batches_of(tokenizer, seed, split) for split in ("train", "heldout")[: 1 + self.heldout]}
        counts = {"train": self.batches, "heldout": loaders["heldout"].num_batches if self.heldout else 0}
        header = StoreHeader(
            form=self.form,
            vocab_size=config.vocab_size,
            length=self.length,
            rows={split: (counts[split] or 0) * self.batch_size for split in loaders},
            teacher=teacher.fingerprint(),
            tokenizer=tokenizer.fingerprint,
            data=data_fingerprint(self.data),
            seed=seed,
            batch_size=self.batch_size,
            batches_per_shard=self.batches_per_shard,
            processes=jax.process_count(),
        )
        writer = StoreWriter(context.workdir, header, process=jax.process_index())
        model = build_model(config, build_execution(mesh, self.rules, precision=self.precision))
        params = stage_training.params_on_mesh(teacher, model, mesh, self.rules)
        view = self._view(model, mesh, jax.random.key(context.seed))
        for split, loader in loaders.items():
            self._write(writer, header, split, loader, partial(view, params), mesh, context.name)
        _wait_for_others("teacher logits written")
        if jax.process_index() == 0:
            artifacts.write_tokenizer(context.workdir, tokenizer)
            writer.finish()
        _wait_for_others("teacher logits finished")
        tokens = sum(header.rows.values()) * self.length
        stored = sum(path.stat().length for path in context.workdir.glob("*.array_record"))
        return StageResult(
            tokens=tokens, metrics={"bytes": stored, "bytes_per_token": stored / tokens, "rows": tokens / self.length}
        )

    def _write(
        self,
        writer: StoreWriter,
        header: StoreHeader,
        split: str,
        loader: Loader,
        view: Callable[[LMBatch, Array], tuple[Array, Array, Array]],
        mesh: Mesh,
        name: str,
    ) -> None:
        """Writes the shards of a split that are not there yet."""
        first, last = _agreed(writer.first_missing(split)), header.num_shards(split)
        start = first * self.batches_per_shard
        loader.set_state({**loader.get_state(), "next_index": start})
        batches = itertools.count(start) if split == "train" else range(start, loader.num_batches or 0)
        rows = _rows(zip(batches, loader, strict=False), view, self._placed(mesh), self.batch_size)
        for shard in progress(range(first, last), description=f"{name} {split}"):
            count = len(header.shard_rows(split, shard, jax.process_index()))
            writer.write_shard(split, shard, itertools.islice(rows, count))

    def _placed(self, mesh: Mesh) -> Callable[[Any], Any]:
        """A function that puts this process's rows of arrays into the global batch."""
        shardings = place.batch_shardings(lm_batch_spec(self.batch_size, self.length), mesh, self.rules).tokens
        return lambda tree: jax.tree.map(partial(jax.make_array_from_process_local_data, shardings), tree)

    def _view(self, model: Model, mesh: Mesh, key: Array) -> View:
        """The teacher's forward pass and what the form keeps of its logits, compiled."""
        form = self.form
        sharding = place.batch_shardings(lm_batch_spec(self.batch_size, self.length), mesh, self.rules).tokens

        @partial(jax.jit, out_shardings=sharding)
        def view(params: Params, batch: LMBatch, numbers: Array) -> tuple[Array, Array, Array]:
            outputs = model.apply(params, batch)
            if isinstance(form, Samples):
                shape = (batch.tokens.shape[1], form.k, 2)
                uniforms = jax.vmap(lambda number: jax.random.uniform(jax.random.fold_in(key, number), shape))(numbers)
                fn = partial(stored_teacher.sample_ids, uniforms=uniforms, temperature=form.temperature)
                ids = head.token_loss(outputs, fn)
                return ids, jnp.ones(ids.shape), jnp.zeros(ids.shape[:2])
            kept = head.token_loss(outputs, partial(stored_teacher.top_logprobs, k=form.k, temperature=form.temperature))
            return kept["ids"], kept["logprobs"], kept["tail"]

        return view


def data_fingerprint(data: PackedText) -> str:
    """Of a text and of how it is packed, wherever its tokens are cached."""
    return fingerprints.fingerprint(dataclasses.replace(data, token_cache=None), data.fingerprint())


def _rows(
    batches: Iterator[tuple[int, LMBatch]],
    view: Callable[[LMBatch, Array], tuple[Array, Array, Array]],
    placed: Callable[[Any], Any],
    batch_size: int,
) -> Iterator[tuple[LMBatch, TeacherRow]]:
    """This process's rows in order, text and teacher; the devices work on one batch while the one before is written."""
    waiting: tuple[LMBatch, Any] | None = None
    for number, text in batches:
        local = len(text.tokens)
        numbers = number * batch_size + jax.process_index() * local + np.arange(local, dtype=np.int32)
        found = view(*placed((text, numbers)))
        if waiting is not None:
            yield from _unstacked(*waiting)
        waiting = text, found
    if waiting is not None:
        yield from _unstacked(*waiting)


def _unstacked(text: LMBatch, found: tuple[Array, ...]) -> Iterator[tuple[LMBatch, TeacherRow]]:
    ids, values, tail = map(_local_rows, found)
    for row in range(len(ids)):
        yield jax.tree.map(lambda x: x[row], text), TeacherRow(ids[row], values[row], tail[row])  # noqa: B023 (used at once)


def _local_rows(array: Array) -> np.ndarray:
    """The rows of a global array that this process's devices hold, each once, in order."""
    parts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])


def _agreed(number: int) -> int:
    """The same number on all processes: the lowest that any of them sees."""
    if jax.process_count() == 1:
        return number
    return int(np.min(multihost_utils.process_allgather(np.asarray(number))))


def _wait_for_others(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"lmx: {what}")
