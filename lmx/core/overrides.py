"""Overrides by path, `stages.sft.optimizer.schedule.peak=3e-4`: typed by the dataclass annotations, checked by the dataclasses."""

import dataclasses
import difflib
import enum
import functools
import inspect
import math
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lmx.core import annotation as annotations

T = TypeVar("T")
_Changes = dict[str, Any]  # segment -> text, or _Changes below it


def override(config: T, path: str, text: str) -> T:
    """The config with the value at a dotted path replaced; see `override_all`."""
    return override_all(config, [(path, text)])


def override_all(config: T, assignments: Iterable[tuple[str, str]]) -> T:
    """The config with several values replaced at once, so that checks across fields see only the final values.

    A path goes through dataclass fields, dict keys, tuple indices and keywords of partials. The text is read as the annotation
    asks: numbers, `true`/`false`, `None`, text, members of a Literal or Enum, and tuples as comma lists.

    Args:
      config: a frozen dataclass.
      assignments: (path, text) pairs; of two with the same path the later one counts.

    Raises:
      ValueError: for an unknown path (with the nearest names), a text of the wrong type, or a value that a dataclass refuses.
    """
    changes: _Changes = {}
    for path, text in assignments:
        _insert(changes, path, text)
    result: T = _apply(config, type(config), changes, "")
    return result


def parse_assignment(text: str) -> tuple[str, str]:
    """(path, value) of `path=value`.

    Raises:
      ValueError: when there is no `=` or no path before it.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"an override has the form path=value, found {text!r}")
    return path.strip(), value.strip()


def nearest(name: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names most like `name`, best first."""
    return difflib.get_close_matches(name, list(names), n=limit, cutoff=0.6)


def _insert(changes: _Changes, path: str, text: str) -> None:
    *parents, leaf = path.split(".")
    here = changes
    for depth, segment in enumerate(parents, 1):
        here = here.setdefault(segment, {})
        if not isinstance(here, dict):
            raise ValueError(f"{path}: {'.'.join(parents[:depth])} is overridden as a whole too; give one of the two")
    if isinstance(here.get(leaf), dict):
        raise ValueError(f"{path}: a part of it is overridden too; give one of the two")
    here[leaf] = text


# ----- walking


def _apply(value: Any, annotation: Any, changes: Any, path: str) -> Any:
    if isinstance(changes, str):
        return parse(changes, annotation, value, path)
    parts = _parts(value, annotation)
    if parts is None:
        raise ValueError(f"{path}: is {value!r}, which has no part {next(iter(changes))!r} to override")
    updates = {}
    for segment, below in changes.items():
        here = f"{path}.{segment}" if path else segment
        if segment not in parts:
            raise ValueError(_unknown(value, path, segment, below, parts))
        item, item_annotation = parts[segment]
        updates[segment] = _apply(item, item_annotation, below, here)
    return _rebuild(value, updates, path)


def _parts(value: Any, annotation: Any = Any) -> dict[str, tuple[Any, Any]] | None:
    """Named parts of a value with their annotations; None for a leaf."""
    members = annotations.union_members(annotation)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        types_of = annotations.field_types(type(value))
        return {f.name: (getattr(value, f.name), types_of[f.name]) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        declared = next((annotations.mapping_types(member)[1] for member in members if annotations.is_mapping(member)), Any)
        return {str(key): (item, declared) for key, item in value.items()}
    if isinstance(value, tuple | list):
        sequence = next((member for member in members if annotations.is_sequence(member)), Any)
        return {str(index): (item, annotations.item_type(sequence, index)) for index, item in enumerate(value)}
    return _keywords(value) if isinstance(value, functools.partial) else None


def _keywords(value: functools.partial[Any]) -> dict[str, tuple[Any, Any]]:
    """Keyword arguments that a partial sets or leaves at a default, with the annotations of the function."""
    parameters: Mapping[str, inspect.Parameter]
    try:
        parameters = inspect.signature(value.func).parameters
        hints = typing.get_type_hints(value.func)
    except (TypeError, ValueError, NameError):  # a builtin without signature: the present values say the types
        parameters, hints = {}, {}
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    keywords = {**defaults, **value.keywords}
    return {name: (item, annotations.strip(hints.get(name, type(item)))) for name, item in keywords.items()}


def _rebuild(value: Any, updates: dict[str, Any], path: str) -> Any:
    if isinstance(value, Mapping):
        return {key: updates.get(str(key), item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return functools.partial(value.func, *value.args, **{**value.keywords, **updates})
    if isinstance(value, tuple | list):
        items = [updates.get(str(index), item) for index, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    try:
        return dataclasses.replace(value, **updates)
    except (ValueError, TypeError, ArithmeticError) as error:
        changed = ", ".join(f"{path}.{name}" if path else name for name in updates)
        raise ValueError(f"override of {changed}: {error}") from error


def _unknown(value: Any, path: str, segment: str, below: Any, parts: Mapping[str, Any]) -> str:
    if isinstance(value, tuple | list):
        return f"{path} has {len(value)} elements, so its indices are 0..{len(value) - 1}, found {segment!r}"
    owner = type(value).__name__ if dataclasses.is_dataclass(value) else path or "the config"
    place = f" (at {path})" if path and dataclasses.is_dataclass(value) else ""
    close = nearest(segment, parts)
    if not close or (isinstance(below, str) and len(close) < 3):
        wanted = _last_segment(segment, below)
        deeper = [leaf for leaf in leaf_paths(value) if "." in leaf]
        last = {leaf.rsplit(".", 1)[1] for leaf in deeper}
        names = nearest(wanted, last, limit=1)
        close += [leaf for leaf in deeper if leaf.rsplit(".", 1)[1] in names][: 3 - len(close)]
    prefix = f"{path}." if path else ""
    if close:
        return f"{owner}{place} has no {segment!r}; the nearest are {', '.join(prefix + name for name in close)}"
    return f"{owner}{place} has no {segment!r}; it has {', '.join(parts) or 'no fields'}"


def _last_segment(segment: str, below: Any) -> str:
    while isinstance(below, dict):
        segment, below = next(iter(below.items()))
    return segment


def leaf_paths(config: Any) -> list[str]:
    """Dotted paths of all values of a config that an override can reach."""
    parts = _parts(config)
    if not parts:
        return []
    return [leaf for name, (item, _) in parts.items() for leaf in [f"{name}.{path}" for path in leaf_paths(item)] or [name]]


# ----- reading texts


def parse(text: str, annotation: Any, current: Any, path: str) -> Any:
    """Reads a text as the annotation asks.

    Args:
      text: what the user typed.
      annotation: resolved annotation of the place; where it says nothing (Any), the present value's type does.
      current: the present value.
      path: the place, for errors.
    """
    if annotation is Any:
        annotation = type(current)
    members = annotations.union_members(annotation)
    # Text is the last resort: in `int | str`, "3" is a number.
    for member in sorted(members, key=lambda member: member is str):
        try:
            return _parse_member(text, member, path)
        except _Mismatch:
            continue
    if all(_is_object(member) for member in members if member is not types.NoneType):
        raise ValueError(_not_a_text(annotation, members, current, path))
    now = "" if current is None else f" (it is {current!r} now)"
    raise ValueError(f"{path}: {text!r} is not {_article(annotations.type_name(annotation))}{now}")


class _Mismatch(Exception):
    """The text is not of this member of a union."""


def _parse_member(text: str, member: Any, path: str) -> Any:
    if typing.get_origin(member) is typing.Literal:
        return _choose(text, {str(choice): choice for choice in typing.get_args(member)})
    if annotations.is_sequence(member):
        return _parse_sequence(text, member, path)
    if isinstance(member, type) and issubclass(member, enum.Enum):
        return _choose(text, {**{str(item.value): item for item in member}, **member.__members__})
    if member is types.NoneType:
        return _choose(text, {"None": None, "none": None, "null": None})
    if member is bool:
        return _choose(text.lower(), {"true": True, "false": False})
    if member is str:
        return text
    if isinstance(member, type) and issubclass(member, pathlib.PurePath):
        return member(text)
    if member in (int, float):
        return _parse_number(text, member)
    raise _Mismatch


def _choose(text: str, choices: Mapping[str, Any]) -> Any:
    if text not in choices:
        raise _Mismatch
    return choices[text]


def _parse_number(text: str, kind: type[int] | type[float]) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        raise _Mismatch from None
    if math.isnan(number):
        raise _Mismatch
    return number


def _parse_sequence(text: str, annotation: Any, path: str) -> Any:
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    texts = [item.strip() for item in inner.split(",") if item.strip()]
    length = annotations.fixed_length(annotation)
    if length is not None and len(texts) != length:
        raise ValueError(f"{path}: {annotations.type_name(annotation)} has {length} values, {text!r} has {len(texts)}")
    items = []
    for index, item in enumerate(texts):
        kind = annotations.item_type(annotation, index)
        items.append(parse(item, str if kind is Any else kind, None, f"{path}.{index}"))
    return items if (typing.get_origin(annotation) or annotation) is list else tuple(items)


def _is_object(member: Any) -> bool:
    """Whether no text can stand for a value of this annotation."""
    if annotations.is_callable(member) or annotations.is_dataclass_type(member) or annotations.is_mapping(member):
        return True
    return isinstance(member, type) and not issubclass(member, int | float | str | pathlib.PurePath | enum.Enum | tuple | list)


def _not_a_text(annotation: Any, members: tuple[Any, ...], current: Any, path: str) -> str:
    parts = _parts(current)
    if parts:
        return f"{path}: is a {type(current).__name__}, which no text can stand for; override a part of it: {', '.join(parts)}"
    what = _article(annotations.type_name(annotation))
    none = "it can be None, or" if types.NoneType in members else "it"
    return f"{path}: holds {what}, which no text can stand for; {none} must be set in the experiment file"


def _article(name: str) -> str:
    if name.startswith("a "):
        return name
    if name.startswith(("'", '"')):
        return f"one of {name}"
    return f"an {name}" if name[:1] in "aeiou" else f"a {name}"
