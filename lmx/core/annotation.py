"""Type annotations of config classes, taken apart: field types, union members, readable names."""

import collections.abc
import dataclasses
import functools
import types
import typing
from typing import Any


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved annotation of each field of a dataclass, in order; Any where an annotation can't be resolved."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a name that exists for type checkers only: the values still say what they are
        hints = {}
    return {field.name: strip(hints.get(field.name, Any)) for field in dataclasses.fields(cls)}


def strip(annotation: Any) -> Any:
    """The annotation without Annotated, Final or NewType around it."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated or origin is typing.Final:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        else:
            return annotation


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Alternatives of a union, or the annotation alone; None stands as NoneType."""
    annotation = strip(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for arg in typing.get_args(annotation) for member in union_members(arg))
    return (types.NoneType,) if annotation is None else (annotation,)


def is_dataclass_type(annotation: Any) -> bool:
    """Whether the annotation is a dataclass itself (no instance, no union)."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def is_sequence(annotation: Any) -> bool:
    """Whether the annotation is a tuple or a list, with or without element types."""
    return (typing.get_origin(annotation) or annotation) in (tuple, list, collections.abc.Sequence)


def is_mapping(annotation: Any) -> bool:
    """Whether the annotation is a dict or Mapping, with or without value types."""
    return (typing.get_origin(annotation) or annotation) in (dict, collections.abc.Mapping)


def is_callable(annotation: Any) -> bool:
    """Whether the annotation is Callable, with or without a signature."""
    return (typing.get_origin(annotation) or annotation) is collections.abc.Callable


def item_type(annotation: Any, index: int) -> Any:
    """Annotation of element `index` of a tuple or list annotation, Any when it doesn't say."""
    args = typing.get_args(annotation)
    if not args:
        return Any
    if typing.get_origin(annotation) is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return strip(args[index]) if index < len(args) else Any
    return strip(args[0])


def fixed_length(annotation: Any) -> int | None:
    """Number of elements that a `tuple[A, B]` annotation fixes, None when any number will do."""
    args = typing.get_args(annotation)
    return len(args) if typing.get_origin(annotation) is tuple and args and args[-1] is not Ellipsis else None


def mapping_types(annotation: Any) -> tuple[Any, Any]:
    """Annotations of the keys and the values of a mapping annotation, Any when it doesn't say."""
    args = typing.get_args(annotation)
    return (strip(args[0]), strip(args[1])) if len(args) == 2 else (Any, Any)


def type_name(annotation: Any) -> str:
    """The annotation as a person writes it: `int | None`, `tuple[int, ...]`, `NormConfig`."""
    members = union_members(annotation)
    if len(members) > 1:
        return " | ".join(type_name(member) for member in members)
    (member,) = members
    if member is types.NoneType:
        return "None"
    if typing.get_origin(member) is typing.Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(member))
    if is_callable(member):
        return "a function"
    origin, args = typing.get_origin(member), typing.get_args(member)
    if origin is not None and args:
        return f"{type_name(origin)}[{', '.join('...' if arg is Ellipsis else type_name(arg) for arg in args)}]"
    return str(getattr(member, "__name__", member))
