"""Configs as JSON and back, by type: what a file may create is bounded by the caller's annotations and function table.

Tags: `{"class": NAME, field: ...}` a dataclass, `{"function": NAME}`, `{"partial": NAME, "args": [...], "keywords": {...}}`,
`{"path": TEXT}`, `{"float": "nan" | "inf" | "-inf"}`, `{"enum": CLASS, "name": MEMBER}`. Tuples are lists; a dict is an object.
"""

import dataclasses
import enum
import functools
import json
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from lmx.core import annotation as annotations

T = TypeVar("T")
Functions = Mapping[str, Callable[..., Any]]
_NOT_FINITE = ({"float": "nan"}, {"float": "inf"}, {"float": "-inf"})
_TAGS = frozenset({"class", "function", "partial", "method", "path", "float", "enum", "dtype", "set", "items"})


@dataclasses.dataclass(frozen=True)
class _Names:
    """How classes and functions are written."""

    of_class: Callable[[type], str]
    of_function: Callable[[Any, str], str]


def to_json(value: Any, functions: Functions | None = None) -> Any:
    """JSON tree of a config, classes by their short names.

    Args:
      value: dataclasses, containers, scalars, paths, functions and partials, nested at will.
      functions: name -> function that the reader will accept; functions are then written by these names and any other is
        refused. None writes qualified names, for people and comparisons only.

    Raises:
      ValueError: for a value that can't be written, with its path.
    """

    def listed(function: Any, where: str) -> str:
        for name, known in (functions or {}).items():
            if known is function:
                return name
        raise ValueError(
            f"{where or 'the value'}: {_shown(function)} is not one of {sorted(functions or {})}, which a file may name"
        )

    of_function = qualified_name if functions is None else listed
    return _encode(value, _Names(of_class=lambda cls: cls.__name__, of_function=of_function), "")


def canonical(value: Any) -> Any:
    """JSON tree of a config with qualified class and function names: equal trees mean equal configs.

    Raises:
      ValueError: for a value without a lasting identity (a lambda, a closure, an array), with its path.
    """
    return _encode(value, _Names(of_class=lambda cls: f"{cls.__module__}.{cls.__qualname__}", of_function=qualified_name), "")


def qualified_name(function: Any, where: str = "") -> str:
    """`module.name` of a function or class.

    Raises:
      ValueError: for a lambda, a closure or an object that has no name of its own.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    place = where or "the config"
    if module is None or name is None:
        raise ValueError(f"{place}: a {type(function).__name__} has no name or fields to be identified by; use a frozen dataclass")
    if "<lambda>" in name:
        raise ValueError(f"{place}: a lambda has no lasting name; define a function in a module, or use functools.partial of one")
    if "<locals>" in name:
        raise ValueError(
            f"{place}: {name} is defined inside a function, so its name doesn't say what it captured; "
            "move it to a module, or use functools.partial"
        )
    return f"{module}.{name}"


def from_json(cls: type[T], data: Any, functions: Functions = types.MappingProxyType({})) -> T:
    """Decodes a JSON tree as the annotations of `cls` allow; nothing is imported or evaluated.

    Args:
      cls: the dataclass to build.
      data: a tree written by `to_json`, possibly by a stranger.
      functions: name -> function for fields annotated as callables.

    Raises:
      ValueError: with the path of the first value that doesn't fit.
    """
    value: T = _decode(cls, data, functions, "")
    return value


def _shown(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or repr(value))


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


# ----- encoding


def _encode(value: Any, names: _Names, where: str) -> Any:
    if value is None or isinstance(value, bool | str) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, enum.Enum):
        return {"enum": names.of_class(type(value)), "name": value.name}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.generic):
        return _encode(value.item(), names, where)
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if isinstance(value, pathlib.PurePath):
        return {"path": value.as_posix()}
    return _encode_container(value, names, where)


def _encode_container(value: Any, names: _Names, where: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name), names, _join(where, f.name)) for f in dataclasses.fields(value)}
        return {"class": names.of_class(type(value)), **fields}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = {name: _encode(getattr(value, name), names, _join(where, name)) for name in value._fields}
        return {"class": names.of_class(type(value)), **fields}
    if isinstance(value, tuple | list):
        return [_encode(item, names, _join(where, index)) for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return {"set": sorted((_encode(item, names, where) for item in value), key=_sort_key)}
    if isinstance(value, Mapping):
        return _encode_mapping(value, names, where)
    if isinstance(value, functools.partial):
        args = [_encode(item, names, _join(where, index)) for index, item in enumerate(value.args)]
        keywords = {name: _encode(item, names, _join(where, name)) for name, item in value.keywords.items()}
        return {"partial": names.of_function(value.func, where), "args": args, "keywords": keywords}
    if isinstance(value, types.MethodType) and not isinstance(value.__self__, type):
        return {"method": names.of_function(value.__func__, where), "self": _encode(value.__self__, names, where)}
    if isinstance(value, np.ndarray) or not callable(value):
        raise ValueError(
            f"{where or 'the config'}: a {type(value).__name__} can't stand in a config; use numbers, text, tuples or dataclasses"
        )
    return {"function": names.of_function(value, where)}


def _encode_mapping(value: Mapping[Any, Any], names: _Names, where: str) -> Any:
    if all(isinstance(key, str) for key in value) and not _TAGS & value.keys():
        return {key: _encode(item, names, _join(where, key)) for key, item in value.items()}
    items = [[_encode(key, names, where), _encode(item, names, _join(where, key))] for key, item in value.items()]
    return {"items": sorted(items, key=_sort_key)}


def _sort_key(item: Any) -> str:
    return json.dumps(item, sort_keys=True)


# ----- decoding


def _decode(annotation: Any, data: Any, functions: Functions, where: str) -> Any:
    members = annotations.union_members(annotation)
    for member in members:
        if _accepts(member, data):
            return _decode_member(member, data, functions, where)
    found = f"a {data['class']!r}" if isinstance(data, dict) and "class" in data else json.dumps(data, default=str)[:80]
    raise ValueError(f"{where or 'the file'}: expected {annotations.type_name(annotation)}, found {found}")


def _accepts(annotation: Any, data: Any) -> bool:
    """Whether the outer form of the data is that of the annotation."""
    if annotation is Any:
        return True
    if annotation is types.NoneType:
        return data is None
    if typing.get_origin(annotation) is typing.Literal:
        return any(choice == data and type(choice) is type(data) for choice in typing.get_args(annotation))
    if annotation is float:
        return type(data) in (int, float) or isinstance(data, dict) and data in _NOT_FINITE
    if annotation in (bool, int, str):
        return type(data) is annotation
    if annotations.is_sequence(annotation):
        return isinstance(data, list)
    if not isinstance(data, dict):
        return False
    if annotations.is_dataclass_type(annotation):
        return data.get("class") == annotation.__name__
    if annotations.is_mapping(annotation):
        return "class" not in data
    if annotations.is_callable(annotation):
        return "function" in data
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return data.get("enum") == annotation.__name__
    return annotation is pathlib.Path and data.keys() == {"path"}


def _decode_member(annotation: Any, data: Any, functions: Functions, where: str) -> Any:
    if annotations.is_dataclass_type(annotation):
        return _decode_dataclass(annotation, data, functions, where)
    if annotation is float:
        return float(data["float"]) if isinstance(data, dict) else float(data)
    if annotations.is_sequence(annotation):
        return _decode_sequence(annotation, data, functions, where)
    if annotations.is_mapping(annotation):
        return _decode_mapping(annotation, data, functions, where)
    if annotations.is_callable(annotation):
        name = data["function"]
        if not isinstance(name, str) or name not in functions:
            raise ValueError(f"{where}: function {name!r} is not one of {sorted(functions)}, which a file may name")
        return functions[name]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        if data.get("name") not in annotation.__members__:
            raise ValueError(f"{where}: {data.get('name')!r} is not one of {list(annotation.__members__)}")
        return annotation[data["name"]]
    if annotation is pathlib.Path:
        return pathlib.Path(data["path"])
    return data


def _decode_sequence(annotation: Any, data: list[Any], functions: Functions, where: str) -> Any:
    length = annotations.fixed_length(annotation)
    if length is not None and len(data) != length:
        raise ValueError(f"{where}: expected {length} values for {annotations.type_name(annotation)}, found {len(data)}")
    items = (_decode(annotations.item_type(annotation, i), item, functions, _join(where, i)) for i, item in enumerate(data))
    return list(items) if (typing.get_origin(annotation) or annotation) is list else tuple(items)


def _decode_mapping(annotation: Any, data: dict[str, Any], functions: Functions, where: str) -> Any:
    key_type, item_type = annotations.mapping_types(annotation)
    pairs = data["items"] if data.keys() == {"items"} else list(data.items())
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{where or 'the file'}: expected pairs of key and value, found {json.dumps(pairs)[:80]}")
    decoded = ((_decode(key_type, key, functions, where), key, item) for key, item in pairs)
    return {key: _decode(item_type, item, functions, _join(where, name)) for key, name, item in decoded}


def _decode_dataclass(cls: Any, data: dict[str, Any], functions: Functions, where: str) -> Any:
    types_of = annotations.field_types(cls)
    given = {name: value for name, value in data.items() if name != "class"}
    if unknown := given.keys() - types_of.keys():
        raise ValueError(
            f"{where or 'the file'}: {cls.__name__} has no field {sorted(unknown)[0]!r}; its fields are {', '.join(types_of)}"
        )
    values = {name: _decode(types_of[name], value, functions, _join(where, name)) for name, value in given.items()}
    required = {
        f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := required - values.keys():
        raise ValueError(f"{where or 'the file'}: {cls.__name__} lacks the field {sorted(missing)[0]!r}")
    try:
        return cls(**values)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{where or cls.__name__}: {error}") from error
