"""The tensors of a conversion: checked by name, shape and dtype before any is read, then moved one by one."""

import collections
import math
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from lmx.checkpoint.streaming import block_rows
from lmx.convert.rules import Place, Rule, by_place
from lmx.convert.source import FLOATS, ConversionError, Source, Target

Progress = Callable[[str, int], None]
"""Called with the name of a tensor and how many of its stored bytes have been dealt with since the last call."""


def check(source: Source) -> None:
    """Every tensor is used exactly once or known to be of no use, and has the shape and a dtype of its parameter; reads none.

    Raises:
      ConversionError: the message names the tensor.
    """
    names = collections.Counter(rule.name for rule in source.rules)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConversionError(f"the rules of {source.family} use the tensor {twice[0]!r} twice")
    for rule in source.rules:
        if rule.name not in source.tensors:
            raise ConversionError(f"{source.path} has no tensor {rule.name!r}, which {rule.place} needs")
    unused = [name for name in source.tensors if name not in names and name not in source.ignored]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise ConversionError(
            f"{source.path} has the tensor {min(unused)[:120]!r}{more}, which the {source.family} family with this config does not "
            "use; nothing was converted"
        )
    for rule in source.rules:
        _check_form(source, rule)


def _check_form(source: Source, rule: Rule) -> None:
    info, expected = source.tensors[rule.name], rule.foreign_shape()
    if tuple(info.shape) != expected:
        raise ConversionError(
            f"the tensor {rule.name!r} of {source.path} has the shape {list(info.shape)}, but its config asks for {list(expected)}"
        )
    if info.dtype not in FLOATS:
        raise ConversionError(f"the tensor {rule.name!r} of {source.path} is {info.dtype}; weights must be {', '.join(FLOATS)}")


def parameter_dtypes(source: Source) -> dict[str, str]:
    """Path of each parameter -> the narrowest dtype that holds all of its places exactly."""
    found: dict[str, set[str]] = {}
    for rule in source.rules:
        found.setdefault(rule.place.leaf, set()).add(source.tensors[rule.name].dtype)
    return {leaf: dtypes.pop() if len(dtypes) == 1 else "float32" for leaf, dtypes in found.items()}


def transfer(source: Source, target: Target, dtype: str | None, progress: Progress) -> list[str]:
    """Moves every tensor, at most one of the source's in memory, and large tables a block of rows at a time.

    Args:
      source: checked.
      target: begun.
      dtype: that was asked for; None = the target keeps every number.
      progress: hears of every tensor.

    Returns:
      Sentences about numbers that are not finite, one a tensor.
    """
    targets = by_place(target.rules)
    _check_places(source, targets)
    warnings = []
    largest = float(ml_dtypes.finfo(dtype).max) if dtype in FLOATS else math.inf
    for rule in source.rules:
        not_finite, too_large = 0, 0
        for start, tensor in _pieces(source, rule, targets[rule.place]):
            bad, large = _count_bad(tensor, largest)
            not_finite, too_large = not_finite + bad, too_large + large
            _move(rule, targets[rule.place], tensor, start, target)
            info = source.tensors[rule.name]
            progress(rule.name, info.stored_bytes * len(tensor) // max(1, info.shape[0]))
        if not_finite:
            warnings.append(f"the tensor {rule.name!r} has {not_finite} numbers that are NaN or infinite")
        if too_large:
            warnings.append(f"the tensor {rule.name!r} has {too_large} numbers that are too large for {dtype}")
    return warnings


def _check_places(source: Source, targets: Mapping[Place, Rule]) -> None:
    places = {rule.place for rule in source.rules}
    if missing := targets.keys() ^ places:
        raise ConversionError(
            f"the two formats cut the parameters differently: {min(str(place) for place in missing)} is in one only"
        )


def _pieces(source: Source, rule: Rule, other: Rule) -> Iterator[tuple[int, np.ndarray]]:
    """The source's tensor whole, or by blocks of rows where neither side rearranges it."""
    if not (rule.layout.by_rows and other.layout.by_rows):
        yield 0, source.read(rule.name)
        return
    step = block_rows(rule.shape)
    for start in range(0, rule.shape[0], step):
        yield start, source.read(rule.name, start, min(start + step, rule.shape[0]))


def _move(rule: Rule, other: Rule, tensor: np.ndarray, start: int, target: Target) -> None:
    shape = rule.shape if len(tensor) == rule.foreign_shape()[0] else (len(tensor), *rule.shape[1:])
    target.write(other.name, other.layout.to_foreign(rule.layout.to_lmx(tensor, shape)), start)


def _count_bad(tensor: np.ndarray, largest: float) -> tuple[int, int]:
    """Numbers that are NaN or infinite, and finite ones beyond the largest of the target; a block of rows at a time."""
    own = float(ml_dtypes.finfo(tensor.dtype).max)
    step = block_rows(tensor.shape)
    not_finite = too_large = 0
    for start in range(0, len(tensor), step):
        block = np.ascontiguousarray(tensor[start : start + step])
        not_finite += _count_not_finite(block)
        if largest < own:
            too_large += int(np.count_nonzero(np.isfinite(block) & (np.abs(block.astype(np.float32)) > largest)))
    return not_finite, too_large


def _count_not_finite(block: np.ndarray) -> int:
    """Counted on the bits, since numpy has no fast test for bfloat16: an exponent of ones is NaN or infinite."""
    unsigned, exponent = {
        np.dtype(np.float32): (np.uint32, 0x7F800000),
        np.dtype(np.float16): (np.uint16, 0x7C00),
        np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    }[block.dtype]
    bits = block.view(unsigned)
    return int(np.count_nonzero((bits & unsigned(exponent)) == unsigned(exponent)))
