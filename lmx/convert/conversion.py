"""One conversion from a path to a path: kinds inferred, everything checked first, and a destination that is complete or absent."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from lmx.convert import publishing, transfer
from lmx.convert.source import ConversionError, ModelDescription, Source, Target
from lmx.core import serialize
from lmx.pipeline import artifact

# Modules by name, because GGUF's needs a package that only the extra `convert` brings.
_SOURCES = {
    "lmx": "lmx.convert.artifact",
    "hf": "lmx.convert.hf.source",
    "gguf": "lmx.convert.gguf.source",
    "meta": "lmx.convert.meta.source",
}
_TARGETS = {"lmx": "lmx.convert.artifact", "hf": "lmx.convert.hf.target", "gguf": "lmx.convert.gguf.target"}
KINDS = {
    "lmx": "lmx artifact",
    "hf": "Hugging Face directory",
    "gguf": "GGUF file",
    "meta": "Meta's Llama directory",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion was asked to do, as the manifest of its artifact records it.

    Attributes:
      source_kind: "hf", "gguf", "meta" or "lmx".
      family: of the source; None for lmx.
      dtype: asked for; None = as the source.
    """

    source_kind: str
    family: str | None
    dtype: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did.

    Attributes:
      source: path that was read.
      source_kind: what it was.
      destination: path that was written.
      destination_kind: what it is.
      family: of the source, or of the destination where that alone has one.
      dtype: of the tensors that were written.
      tensors: how many tensors were read.
      parameters: numbers in them.
      read_bytes: bytes of the tensors.
      seconds: wall time.
      notes: decisions to know of, one sentence each.
      warnings: numbers that are not finite, one sentence a tensor.
    """

    source: Path
    source_kind: str
    destination: Path
    destination_kind: str
    family: str | None
    dtype: str
    tensors: int
    parameters: int
    read_bytes: int
    seconds: float
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people."""
        family = f" of the family {self.family}" if self.family else ""
        return [
            f"{self.source}: {KINDS[self.source_kind]}{family}, {self.tensors} tensors, {self.parameters:,} parameters",
            *(f"note: {note}" for note in self.notes),
            *(f"warning: {warning}" for warning in self.warnings),
            f"{self.destination}: {KINDS[self.destination_kind]} in {self.dtype}; {self.read_bytes / 1e9:.3g} GB read "
            f"in {self.seconds:.1f} s",
        ]


def convert(
    source: epath.PathLike,
    destination: epath.PathLike,
    *,
    to: str | None = None,
    dtype: str | None = None,
    show_progress: bool = False,
) -> Report:
    """Converts a checkpoint tensor by tensor.

    Args:
      source: an lmx artifact, a Hugging Face directory, a GGUF file or Meta's Llama directory; the kind is inferred.
      destination: must not exist.
      to: "hf", "lmx" or "gguf"; None = gguf for a name that ends in .gguf, else lmx, and hf for an lmx source.
      dtype: of the tensors to write, "float32", "float16", "bfloat16", and "q8_0" for GGUF; None = as in the source.
      show_progress: draw a progress bar.

    Returns:
      What was done, with everything that was decided on the way.

    Raises:
      FileNotFoundError: there is no source.
      FileExistsError: the destination exists.
      ConversionError: the source is malformed, of a kind that lmx does not implement, or cannot be written in that form.
      DiskFullError: there is too little space. Nothing is left under the destination's name after any error.
    """
    began = time.monotonic()
    source_path, final = publishing.local(source), publishing.local(destination)
    kind = source_kind(source_path)
    target_kind = _target_kind(kind, final, to)
    publishing.check_absent(final)
    with contextlib.closing(open_source(kind, source_path)) as opened:
        transfer.check(opened)
        description = _describe(opened, dtype)
        temporary = publishing.temporary_name(final)
        target = open_target(target_kind, temporary, description)
        publishing.check_space(final.parent, target)
        notes = publishing.leftovers(final)
        with publishing.published(temporary, final, target), _bar(opened, show_progress) as progress:
            target.begin()
            warnings = transfer.transfer(opened, target, dtype, progress)
            target.finish()
    return Report(
        source=source_path,
        source_kind=kind,
        destination=final,
        destination_kind=target_kind,
        family=opened.family or getattr(target, "family", None),
        dtype=target.dtype,
        tensors=len(opened.rules),
        parameters=sum(math.prod(rule.shape) for rule in opened.rules),
        read_bytes=sum(opened.tensors[rule.name].stored_bytes for rule in opened.rules),
        seconds=time.monotonic() - began,
        notes=(*_passed_over(opened), *opened.notes, *target.notes, *notes),
        warnings=tuple(warnings),
    )


def open_source(kind: str, path: Path) -> Source:
    """The checkpoint of a kind at a path, its metadata read and checked."""
    opened: Source = _module(_SOURCES[kind]).open_source(path)
    return opened


def open_target(kind: str, path: Path, model: ModelDescription) -> Target:
    """A checkpoint of a kind to be written at a path; nothing is written yet."""
    target: Target = _module(_TARGETS[kind]).open_target(path, model)
    return target


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "lmx":
            raise
        raise ConversionError(
            f"this kind of checkpoint needs the package {error.name}; install it with: pip install 'lmx[convert]'"
        ) from error


def source_kind(path: Path) -> str:
    """What lies at a path: "lmx", "hf", "gguf" or "meta".

    Raises:
      FileNotFoundError: nothing.
      ConversionError: nothing that can be converted.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}: nothing exists there")
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    if (path / artifact.MANIFEST).exists() or (path / artifact.MODEL).exists():
        return "lmx"
    if (path / "config.json").exists():
        return "hf"
    if (path / "params.json").exists():
        return "meta"
    if path.is_dir() and len(list(path.glob("*.gguf"))) == 1:
        raise ConversionError(f"{path} is a directory with a GGUF file; name the file {next(path.glob('*.gguf'))}")
    raise ConversionError(
        f"{path} is no checkpoint that lmx converts: expected a folder with {artifact.MANIFEST} (lmx), config.json (Hugging "
        "Face) or params.json (Meta), or a file *.gguf"
    )


def _target_kind(kind: str, final: Path, to: str | None) -> str:
    chosen = to or ("gguf" if final.suffix.lower() == ".gguf" else "hf" if kind == "lmx" else "lmx")
    if chosen not in _TARGETS:
        raise ConversionError(f"lmx writes {', '.join(_TARGETS)}, not {chosen!r}")
    return chosen


def _describe(source: Source, dtype: str | None) -> ModelDescription:
    found = source.tokenizer()
    tokenizer, chat = (None, None) if found is None else found
    if tokenizer is not None and tokenizer.vocab_size > source.config.vocab_size:
        raise ConversionError(
            f"the tokenizer of {source.path} has {tokenizer.vocab_size} ids, but the embedding has only "
            f"{source.config.vocab_size} rows: they do not belong together"
        )
    asked = Conversion(source_kind=source.kind, family=source.family, dtype=dtype)
    digest = artifact.digest(epath.Path(source.path))
    fingerprint = hashlib.sha256(repr((asked, digest)).encode()).hexdigest()
    manifest = artifact.Manifest(
        stage="convert",
        kind="model",
        status="running",
        fingerprint=fingerprint,
        seed=0,
        config=serialize.canonical(asked),
        inputs={"source": artifact.InputRecord(source=str(source.path), fingerprint=digest)},
        versions=artifact.versions(),
        started=datetime.datetime.now(datetime.UTC).isoformat(),
    )
    return ModelDescription(
        config=source.config,
        family=source.family,
        dtypes=transfer.parameter_dtypes(source),
        dtype=dtype,
        tokenizer=tokenizer,
        chat=chat,
        origin=source.origin,
        manifest=manifest,
    )


@contextlib.contextmanager
def _bar(source: Source, shown: bool) -> Iterator[transfer.Progress]:
    total = sum(source.tensors[rule.name].stored_bytes for rule in source.rules)
    with tqdm(total=total, unit="B", unit_scale=True, disable=not shown, dynamic_ncols=True) as bar:

        def progress(name: str, count: int) -> None:
            bar.set_postfix_str(name[-40:], refresh=False)
            bar.update(count)

        yield progress


def _passed_over(source: Source) -> tuple[str, ...]:
    reasons: dict[str, list[str]] = {}
    for name, reason in source.ignored.items():
        reasons.setdefault(reason, []).append(name)
    return tuple(
        f"{len(names)} tensor{'s' if len(names) > 1 else ''} not used, {reason}: {names[0]}{' ...' if len(names) > 1 else ''}"
        for reason, names in reasons.items()
    )
