"""Merges of checkpoints on disk, tensor by tensor: no more than one tensor of each model is in memory, whatever their size."""

import contextlib
import dataclasses
import datetime
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from etils import epath
from tqdm import tqdm

from lmx.checkpoint.streaming import block_rows
from lmx.convert import publishing, transfer
from lmx.convert.conversion import KINDS, open_source, open_target, source_kind
from lmx.convert.rules import Place, Rule, by_place
from lmx.convert.source import FLOATS, ConversionError, ModelDescription, Source, Target
from lmx.core import serialize
from lmx.core.types import Array
from lmx.merging.methods import Block, Method
from lmx.merging.parts import Part, cut
from lmx.merging.trees import merged
from lmx.model.config import DecoderConfig, ScalarHead
from lmx.pipeline import artifact
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

_MAY_DIFFER = ("max_length", "init_std")  # the parameters mean the same whatever these are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merging:
    """What a merge was asked to do, as the manifest of its artifact records it.

    Attributes:
      method: how.
      dtype: of the result; None = as the first model.
    """

    method: Method
    dtype: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge did.

    Attributes:
      models: paths that were merged, in order.
      base: path that task vectors were taken from; None = the method has none.
      method: its name.
      destination: path that was written.
      destination_kind: what it is.
      dtype: of the tensors that were written.
      parameters: numbers in the result.
      seconds: wall time.
      notes: decisions to know of, one sentence each.
      warnings: numbers that are not finite, one sentence a tensor.
    """

    models: tuple[Path, ...]
    base: Path | None
    method: str
    destination: Path
    destination_kind: str
    dtype: str
    parameters: int
    seconds: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people."""
        base = f", task vectors from {self.base}" if self.base else ""
        return [
            f"{self.method} of {', '.join(map(str, self.models))}{base}: {self.parameters:,} parameters",
            *(f"note: {note}" for note in self.notes),
            *(f"warning: {warning}" for warning in self.warnings),
            f"{self.destination}: {KINDS[self.destination_kind]} in {self.dtype}; {self.seconds:.1f} s",
        ]


def merge_checkpoints(
    models: Sequence[epath.PathLike],
    destination: epath.PathLike,
    method: Method,
    *,
    base: epath.PathLike | None = None,
    to: str | None = None,
    dtype: str | None = None,
    show_progress: bool = False,
) -> MergeReport:
    """Merges checkpoints into a new one; tokenizer, chat format and config are those of the first model.

    The numbers are those of `lmx.merging.merge` on the same parameters, to the last bit.

    Args:
      models: lmx artifacts, Hugging Face directories or whatever else `lmx.convert` reads, in the order of the method's weights.
      destination: must not exist.
      method: how to merge, see `lmx.merging`.
      base: the checkpoint that all were trained from, for methods of task vectors.
      to: "lmx", "hf" or "gguf"; None = as the first model where lmx writes that, else lmx.
      dtype: of the result, "float32", "float16" or "bfloat16"; None = as the first model.
      show_progress: draw a progress bar.

    Returns:
      What was done.

    Raises:
      FileNotFoundError: a checkpoint is missing.
      FileExistsError: the destination exists.
      ConversionError: a checkpoint is malformed, or two are of different architectures or tokenizers; the message names both.
      ValueError: the method refuses these models or has other weights.
      DiskFullError: there is too little space. Nothing is left under the destination's name after any error.
    """
    began = time.monotonic()
    final = publishing.local(destination)
    publishing.check_absent(final)
    paths = [publishing.local(path) for path in (*models, *([] if base is None else [base]))]
    _check_request(method, len(models), base, dtype)
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(contextlib.closing(open_source(source_kind(path), path))) for path in paths]
        for source in sources:
            transfer.check(source)
        inputs = _Checkpoints(sources, has_base=base is not None)
        found = check_alike(sources)
        method.check(len(models), {part.group for part in inputs.parts})
        description, notes = _describe(sources, found, Merging(method=method, dtype=dtype), has_base=base is not None)
        kind = to or (sources[0].kind if sources[0].kind in ("lmx", "hf") else "lmx")
        temporary = publishing.temporary_name(final)
        target = open_target(kind, temporary, description)
        publishing.check_space(final.parent, target)
        notes += publishing.leftovers(final, "merge")
        with publishing.published(temporary, final, target):
            target.begin()
            warnings = _write(method, inputs, target, dtype, show_progress)
            target.finish()
    return MergeReport(
        models=tuple(paths[: len(models)]),
        base=None if base is None else paths[-1],
        method=type(method).__name__.lower(),
        destination=final,
        destination_kind=kind,
        dtype=target.dtype,
        parameters=sum(part.size for part in inputs.parts),
        seconds=time.monotonic() - began,
        notes=(*notes, *target.notes),
        warnings=tuple(warnings),
    )


class _Checkpoints:
    """The inputs of a method, read from disk as often as it asks; see `lmx.merging.methods.Inputs`."""

    def __init__(self, sources: Sequence[Source], *, has_base: bool) -> None:
        self._sources = sources
        self._rules = [by_place(source.rules) for source in sources]
        self._has_base = has_base
        shapes: dict[str, tuple[int, ...]] = {}
        for rule in sources[0].rules:
            place = rule.place
            counts = tuple(max(size, index + 1) for size, index in zip(_known(shapes, place), place.indices, strict=True))
            shapes[place.leaf] = (*counts, *rule.shape)
        self.parts = cut(shapes)

    @property
    def count(self) -> int:
        """Number of models, the base not counted."""
        return len(self._sources) - self._has_base

    def blocks(self, part: Part) -> Iterator[Block]:
        """A part of all models, at most `block_rows` rows in float32 at a time."""
        place = Place(part.leaf, *part.index)
        readers = [_rows_of(source, rules[place]) for source, rules in zip(self._sources, self._rules, strict=True)]
        rows = part.shape[0] if part.shape else 1
        step = block_rows(part.shape)
        for start in range(0, rows, step):
            found = [read(start, min(rows, start + step)) for read in readers]
            yield Block(start, found.pop() if self._has_base else None, found)


def _known(shapes: dict[str, tuple[int, ...]], place: Place) -> tuple[int, ...]:
    """The leading sizes of a parameter, as far as its places have been seen."""
    return shapes.get(place.leaf, (0,) * len(place.indices))[: len(place.indices)]


def _rows_of(source: Source, rule: Rule) -> Callable[[int, int], Array]:
    """Reads rows of a part in float32; from a tensor that its format rearranges, the whole tensor is read at the first call."""
    if rule.layout.by_rows and rule.shape:
        return lambda start, stop: _float32(
            rule.layout.to_lmx(source.read(rule.name, start, stop), (stop - start, *rule.shape[1:]))
        )
    whole: list[np.ndarray] = []

    def rows(start: int, stop: int) -> Array:
        if not whole:
            whole.append(rule.to_lmx(source.read(rule.name)))
        return _float32(whole[0][start:stop] if rule.shape else whole[0])

    return rows


def _float32(rows: np.ndarray) -> Array:
    return jnp.asarray(np.ascontiguousarray(rows)).astype(jnp.float32)


def _write(method: Method, inputs: _Checkpoints, target: Target, dtype: str | None, show_progress: bool) -> list[str]:
    """Merges every part and writes it; sentences about numbers that are not finite, or that the dtype cannot hold."""
    rules = by_place(target.rules)
    if missing := {Place(part.leaf, *part.index) for part in inputs.parts} ^ rules.keys():
        raise ConversionError(f"the result cuts the parameters differently: {min(map(str, missing))} is in one only")
    largest = float(ml_dtypes.finfo(dtype or "float32").max)
    bad: dict[str, int] = {}
    whole: np.ndarray | None = None
    total = sum(part.size for part in inputs.parts)
    with tqdm(total=total, unit_scale=True, disable=not show_progress, dynamic_ncols=True) as bar:
        for part, start, rows in merged(method, inputs, inputs.parts):
            rule = rules[Place(part.leaf, *part.index)]
            bad[rule.name] = bad.get(rule.name, 0) + int(jnp.sum(~(jnp.abs(rows) <= largest)))
            block = np.asarray(rows)
            if rule.layout.by_rows:
                target.write(rule.name, rule.layout.to_foreign(block), start)
            else:  # rows of the part are no rows of the tensor: written when all have come
                whole = np.empty(part.shape, np.float32) if start == 0 or whole is None else whole
                whole[start : start + len(block)] = block
                if start + len(block) == part.shape[0]:
                    target.write(rule.name, rule.to_foreign(whole))
                    whole = None
            bar.set_postfix_str(part.name[-40:], refresh=False)
            bar.update(block.size)
    return [
        f"the tensor {name!r} has {count} numbers that are NaN, infinite or too large for {dtype or 'its dtype'}"
        for name, count in bad.items()
        if count
    ]


def _check_request(method: Method, count: int, base: epath.PathLike | None, dtype: str | None) -> None:
    name = type(method).__name__.lower()
    if count == 0 or (count == 1 and not method.needs_base):
        raise ValueError(f"{name} of {count} model{'' if count else 's'} has nothing to merge; give two or more")
    if method.needs_base and base is None:
        raise ValueError(f"{name} merges task vectors: give the base that the models were trained from (--base)")
    if not method.needs_base and base is not None:
        raise ValueError(f"{name} has no use for the base {os.fspath(base)}; leave it out, or add it to the models")
    if dtype is not None and dtype not in FLOATS:
        raise ConversionError(f"dtype {dtype} is none of those that a merge is written in: {', '.join(FLOATS)}")


def check_alike(sources: Sequence[Source]) -> list[tuple[Tokenizer, Chat | None] | None]:
    """Tokenizer and chat format of each source, None where it has none.

    Raises:
      ConversionError: two differ in architecture or tokenizer; the message names both, and the first difference.
    """
    first = sources[0]
    for other in sources[1:]:
        if difference := _difference(first.config, other.config, ""):
            raise ConversionError(
                f"{first.path} and {other.path} are of different architectures: {difference}; they cannot be merged"
            )
    found = [source.tokenizer() for source in sources]
    known = [(source, pair[0]) for source, pair in zip(sources, found, strict=True) if pair is not None]
    for source, tokenizer in known[1:]:
        if not _same_ids(known[0][1], tokenizer):
            raise ConversionError(
                f"{known[0][0].path} and {source.path} have different tokenizers: the same id means different text in the two, and "
                "they cannot be merged"
            )
    return found


def _same_ids(first: Tokenizer, second: Tokenizer) -> bool:
    """Whether every id stands for the same bytes, or the same special; the kinds may differ, as after an export."""
    if first.fingerprint == second.fingerprint:
        return True
    if first.vocab_size != second.vocab_size or first.special_ids != second.special_ids:
        return False
    for index in range(first.vocab_size):
        known = first.token_bytes(index), second.token_bytes(index)
        named = (first.id_to_piece(index), second.id_to_piece(index)) if None in known else known
        if named[0] != named[1]:
            return False
    return True


def _difference(first: Any, second: Any, where: str) -> str | None:
    """The first field in which two configs differ, as text; what the parameters don't depend on is passed over."""
    if type(first) is type(second) and dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first) if where or field.name not in _MAY_DIFFER]
        below = (_difference(getattr(first, n), getattr(second, n), f"{where}.{n}".lstrip(".")) for n in names)
        return next((difference for difference in below if difference), None)
    if isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return next((found for i, (x, y) in pairs if (found := _difference(x, y, f"{where}[{i}]"))), None)
    return None if first == second else f"{where} is {_shown(first)} in the one and {_shown(second)} in the other"


def _shown(value: Any) -> str:
    return getattr(value, "__name__", repr(value))[:120]


def _describe(
    sources: Sequence[Source], found: Sequence[tuple[Tokenizer, Chat | None] | None], asked: Merging, *, has_base: bool
) -> tuple[ModelDescription, tuple[str, ...]]:
    first = sources[0]
    pair = next((pair for pair in found if pair is not None), None)
    notes = _notes(sources, found)
    digests = [artifact.digest(epath.Path(source.path)) for source in sources]
    names = [f"model_{number}" for number in range(len(sources) - has_base)] + (["base"] if has_base else [])
    config: DecoderConfig = first.config
    manifest = artifact.Manifest(
        stage="merge",
        kind="reward_model" if isinstance(config.head, ScalarHead) else "model",
        status="running",
        fingerprint=hashlib.sha256(repr((serialize.canonical(asked), digests)).encode()).hexdigest(),
        seed=0,
        config=serialize.canonical(asked),
        inputs={
            name: artifact.InputRecord(source=str(source.path), fingerprint=digest)
            for name, source, digest in zip(names, sources, digests, strict=True)
        },
        versions=artifact.versions(),
        started=datetime.datetime.now(datetime.UTC).isoformat(),
    )
    description = ModelDescription(
        config=config,
        family=next((source.family for source in sources if source.family), None),
        dtypes=transfer.parameter_dtypes(first),
        dtype=asked.dtype,
        tokenizer=None if pair is None else pair[0],
        chat=None if pair is None else pair[1],
        origin=first.origin,
        manifest=manifest,
    )
    return description, notes


def _notes(sources: Sequence[Source], found: Sequence[tuple[Tokenizer, Chat | None] | None]) -> tuple[str, ...]:
    without = [str(source.path) for source, pair in zip(sources, found, strict=True) if pair is None]
    lengths = {source.config.max_length for source in sources}
    notes = [note for source in sources for note in source.notes]
    if without and len(without) < len(sources):
        notes.append(f"{', '.join(without)} without a tokenizer: taken to be for the same ids as the others")
    if len(lengths) > 1:
        notes.append(f"the models have different max_length; the result has that of {sources[0].path}")
    return tuple(dict.fromkeys(notes))
