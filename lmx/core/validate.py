"""Values of a config against the annotations of its dataclasses, which Python itself never checks."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmx.core import annotation as annotations

_SCALARS: dict[Any, tuple[type, ...]] = {
    bool: (bool, np.bool_),
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    str: (str,),
}


def validate(config: Any, path: str = "") -> None:
    """Compares every field, nested ones included, with its annotation; an annotation that isn't a plain type accepts all.

    Args:
      config: a dataclass.
      path: where it stands, for the error.

    Raises:
      ValueError: naming the first value of a wrong type.
    """
    cls: Any = type(config)
    for name, annotation in annotations.field_types(cls).items():
        _check(getattr(config, name), annotation, f"{path}.{name}" if path else name)


def _check(value: Any, annotation: Any, path: str) -> None:
    members = annotations.union_members(annotation)
    member = next((member for member in members if _fits(value, member)), None)
    if member is None:
        raise ValueError(f"{path} must be {annotations.type_name(annotation)}, found {value!r}, {type(value).__name__}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        validate(value, path)
    elif isinstance(value, Mapping) and annotations.is_mapping(member):
        for key, item in value.items():
            _check(item, annotations.mapping_types(member)[1], f"{path}.{key}")
    elif isinstance(value, tuple | list) and annotations.is_sequence(member):
        for index, item in enumerate(value):
            _check(item, annotations.item_type(member, index), f"{path}.{index}")


def _fits(value: Any, member: Any) -> bool:
    """Whether the outer form of the value is that of an annotation that is no union."""
    if member in _SCALARS:
        return isinstance(value, _SCALARS[member]) and (member is bool or not isinstance(value, bool | np.bool_))
    if typing.get_origin(member) is typing.Literal:
        return any(choice == value and type(choice) is type(value) for choice in typing.get_args(member))
    if annotations.is_sequence(member):
        length = annotations.fixed_length(member)
        return isinstance(value, tuple | list) and length in (None, len(value))
    if annotations.is_mapping(member):
        return isinstance(value, Mapping)
    if annotations.is_callable(member):
        return callable(value)
    if member is types.NoneType:
        return value is None
    if isinstance(member, type) and not getattr(member, "_is_protocol", False) and member is not typing.Any:
        return isinstance(value, member) if typing.get_origin(member) is None else True
    return True
