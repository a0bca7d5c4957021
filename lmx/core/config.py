"""Frozen configs for people: the resolved text of one, and what differs between two."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from lmx.core import serialize

_WIDTH = 100
_ABSENT = object()


def to_text(config: Any) -> str:
    """The whole config, one field a line and nested by indentation; small parts stand on one line."""
    return "\n".join(_lines(config, "", ""))


def _lines(value: Any, label: str, indent: str) -> list[str]:
    head = f"{indent}{label}: " if label else indent
    short = _short(value)
    children = _children(value)
    if not children or (len(head) + len(short) <= _WIDTH and not any(_children(child) for _, child in children)):
        return [head + short]
    title = "" if isinstance(value, Mapping | tuple | list) else _title(value)
    deeper = indent + "  "
    return [(head + title).rstrip(), *(line for name, child in children for line in _lines(child, name, deeper))]


def _children(value: Any) -> list[tuple[str, Any]]:
    """Named parts of a value, none for a leaf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(str(name), item) for name, item in value.items()]
    if isinstance(value, functools.partial):
        return [*((str(i), item) for i, item in enumerate(value.args)), *value.keywords.items()]
    if isinstance(value, tuple | list) and any(_children(item) for item in value):
        return [(str(i), item) for i, item in enumerate(value)]
    return []


def _title(value: Any) -> str:
    return f"partial {_name(value.func)}" if isinstance(value, functools.partial) else type(value).__name__


def _short(value: Any) -> str:
    """The value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_short(item)}" for name, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"
    if children := _children(value):
        return f"{_title(value)}({', '.join(f'{name}={_short(child)}' for name, child in children)})"
    if isinstance(value, pathlib.PurePath):
        return str(value)
    return _name(value) if callable(value) else repr(value)


def _name(function: Any) -> str:
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def diff(a: Any, b: Any) -> str:
    """What changes from config `a` to config `b`, one `path: old -> new` a line; empty when nothing does."""
    return diff_json(serialize.canonical(a), serialize.canonical(b))


def diff_json(a: Any, b: Any) -> str:
    """As `diff`, for two trees made by `serialize.canonical` (one may come from a file of an earlier run)."""
    old, new = _flatten(a, ""), _flatten(b, "")
    lines = []
    for path in [*old, *(path for path in new if path not in old)]:
        before, after = old.get(path, _ABSENT), new.get(path, _ABSENT)
        if before != after or type(before) is not type(after):
            lines.append(f"{path}: {_leaf(before)} -> {_leaf(after)}")
    return "\n".join(lines)


def _flatten(tree: Any, path: str) -> dict[str, Any]:
    """Leaves by dotted path; a class or function tag counts as a leaf of its own."""
    if isinstance(tree, dict) and tree:
        items = [(key, value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {path or "value": tree}
    return {leaf: value for key, item in items for leaf, value in _flatten(item, f"{path}.{key}" if path else key).items()}


def _leaf(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    return f"({', '.join(map(_leaf, value))})" if isinstance(value, list) else repr(value)
