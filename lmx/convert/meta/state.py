"""What a torch state dict's pickle says, read symbolically: nothing is imported, called or built but plain data.

A pickle is a program that builds objects by calling functions that it names. Here its opcodes are followed on a stack of plain
values, and of all functions that can be named only those of a state dict are known, as symbols: what a call of one of them
describes is noted, and nothing is called. Any other name or opcode ends the reading.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

MAX_BYTES = 4 << 20
"""Longest pickle that is read; that of Llama 3.1 405B takes a fifth of a megabyte."""
_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}
_GLOBALS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(("torch", name) for name in _STORAGES),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"})
_PASSED_OVER = frozenset({"PROTO", "FRAME"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MAX_AXES = 8


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the archive: their type, the name of their entry below `data/`, and how many there are."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class PickledTensor:
    """A tensor as numbers `offset` to `offset + product(shape)` of a storage, the last axis fastest."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """That its numbers take."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class _Symbol:
    """A function or class that the pickle names."""

    module: str
    name: str


class _Mark:
    """The place on the stack where a list of items began."""


def read_state(data: bytes) -> Mapping[str, PickledTensor]:
    """Tensors by name.

    Args:
      data: a pickle of a dict of tensors.

    Raises:
      ValueError: it is damaged, or holds or calls anything that a state dict does not; one sentence, without the file's name.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"its pickle has {len(data):,} bytes; that of a state dict has less than {MAX_BYTES:,}")
    state = _Machine().run(data)
    if not isinstance(state, dict):
        raise ValueError(f"its pickle holds a value of the type {_kind(state)} where a dict of tensors is expected")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise ValueError(
                f"its pickle has a value of the type {_kind(value)} under the key {str(name)[:80]!r} where a tensor is expected"
            )
    return state


class _Machine:
    """Follows the opcodes of one pickle."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The object that the pickle describes."""
        at = 0
        try:
            for opcode, argument, position in pickletools.genops(data):
                at = position or 0
                if opcode.name == "STOP":
                    return self._pop()
                self._step(opcode.name, argument)
        except (IndexError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"its pickle is damaged at byte {at:,} ({type(error).__name__})") from None
        except ValueError as error:
            raise ValueError(f"its pickle cannot be read at byte {at:,}: {str(error)[:200]}") from None
        raise ValueError("its pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self._stack.append(tuple(self._pop() for _ in range(_TUPLES[name]))[::-1])
        elif name not in _PASSED_OVER:
            handler = _HANDLERS.get(name)
            if handler is None:
                raise ValueError(f"the opcode {name} does not occur in a state dict, and lmx does not follow it")
            handler(self, argument)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("a list ends where a value is expected")
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            items.append(value)
        return items[::-1]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_symbol(module, name)

    def _stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._push_symbol(module, name)

    def _push_symbol(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _GLOBALS:
            raise ValueError(
                f"it names {str(module)[:60]}.{str(name)[:60]}, which no state dict of float weights needs; nothing was called"
            )
        self._stack.append(_Symbol(module, name))

    def _put(self, index: int | None) -> None:
        """Notes the top of the stack under an index; the opcode without one counts."""
        if isinstance(self._stack[-1], _Mark):
            raise ValueError("a mark is noted as a value")
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def _persistent(self, _: None) -> None:
        """A storage: ("storage", class, key, device, count)."""
        identity = self._pop()
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise ValueError("it refers to something outside that is no storage of numbers")
        _, symbol, key, _, count = identity
        if not isinstance(symbol, _Symbol) or symbol.name not in _STORAGES or not isinstance(key, str) or not _is_size(count):
            raise ValueError("it describes a storage in a way that torch.save does not")
        self._stack.append(Storage(_STORAGES[symbol.name], key, count))

    def _reduce(self, _: None) -> None:
        arguments, symbol = self._pop(), self._pop()
        if not isinstance(symbol, _Symbol) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        if symbol.name == "OrderedDict" and not arguments:
            self._stack.append({})
        elif symbol.name == "_rebuild_tensor_v2" and len(arguments) in (6, 7):
            self._stack.append(_tensor(*arguments[:4]))
        elif symbol.name == "_rebuild_parameter" and arguments and isinstance(arguments[0], PickledTensor):
            self._stack.append(arguments[0])
        else:
            raise ValueError(f"it calls {symbol.module}.{symbol.name} in a way that torch.save does not")

    def _build(self, _: None) -> None:
        """Attributes of an object: an OrderedDict carries `_metadata`, which says nothing about the numbers."""
        self._pop()
        if not isinstance(self._stack[-1], dict):
            raise ValueError("it sets attributes of what is no dict")

    def _set_items(self, _: None) -> None:
        items = self._pop_to_mark()
        self._store(items)

    def _set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._store([key, value])

    def _store(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it puts items into what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError(f"it has a value of the type {_kind(key)} as a key where a name is expected")
            if key in target:
                raise ValueError(f"the name {key[:80]!r} occurs twice")
            target[key] = value

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target += items


_HANDLERS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine._push(_Mark()),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_to_mark())),
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "BINGET": lambda machine, index: machine._push(machine._memo[index]),
    "LONG_BINGET": lambda machine, index: machine._push(machine._memo[index]),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_to_mark()),
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    if not isinstance(storage, Storage) or not _is_size(offset) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("it describes a tensor in a way that torch.save does not")
    if len(shape) > MAX_AXES or len(strides) != len(shape) or not all(map(_is_size, (*shape, *strides))) or 0 in shape:
        raise ValueError("it describes a tensor whose shape and strides cannot be")
    expected, size = [], 1
    for length in reversed(shape):
        expected.append(size)
        size *= length
    for length, stride, dense in zip(shape, strides, reversed(expected), strict=True):
        if length > 1 and stride != dense:
            raise ValueError(f"it has a tensor of shape {shape} and strides {strides}, whose numbers do not lie one after another")
    if offset + size > storage.count:
        raise ValueError(f"it has a tensor of shape {shape} from number {offset:,} on in a storage of only {storage.count:,}")
    return PickledTensor(storage, offset, shape)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _kind(value: Any) -> str:
    return value.name if isinstance(value, _Symbol) else type(value).__name__
