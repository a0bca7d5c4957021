"""What a chat template may spend: work and time, counted while it runs, and the sizes of the values that it makes."""

import contextlib
import contextvars
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jinja2

MAX_VALUE_CHARACTERS = 2**24  # of one string or container, strings inside included
ENTRY_CHARACTERS = 16  # what an entry of a container counts for
MAX_NUMBER = 2**64
SECONDS = 5.0  # of one rendering
CONVERSATION_SECONDS = 20.0  # of all renderings of a conversation, one for each of the assistant's messages
_WORK = 2**27  # characters read or made and steps taken, in all


class TemplateLimitError(jinja2.TemplateError):
    """A template does more than a chat template needs."""


class _Budget:
    """What is left of the work and the time of one rendering."""

    def __init__(self, marker: str, deadline: float) -> None:
        self.marker = marker
        self.work = _WORK
        self.deadline = min(deadline, time.monotonic() + SECONDS)

    def spend(self, amount: int) -> None:
        self.work -= amount + 1
        if self.work < 0:
            raise TemplateLimitError(f"the template does more than {_WORK} steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(
                f"the template takes more than {SECONDS:g} seconds, or a conversation {CONVERSATION_SECONDS:g}"
            )


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("lmx_template_budget")


def spend(amount: int) -> None:
    """Pays for `amount` steps or characters, and one more."""
    _budget.get().spend(amount)


def measure(value: Any) -> tuple[int, int]:
    """Characters of a value when written out, and its entries; what is in it twice counts twice.

    Raises:
      TemplateLimitError: more than `MAX_VALUE_CHARACTERS`.
    """
    characters, entries, pending = 0, 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, Mapping):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        entries += 1
        if characters + ENTRY_CHARACTERS * entries > MAX_VALUE_CHARACTERS:
            raise TemplateLimitError(f"the template makes a value of more than {MAX_VALUE_CHARACTERS} characters")
    return characters + ENTRY_CHARACTERS * entries, entries


def size_of(value: Any) -> int:
    """Characters of a value when written out."""
    return measure(value)[0]


def kept(value: Any) -> Any:
    """The value, paid for: a text by its length, a container by its entries, whose texts were paid for. Numbers stay small."""
    if isinstance(value, str):
        spend(size_of(value))
    elif isinstance(value, (list, tuple, Mapping)):
        spend(measure(value)[1])
    elif isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise TemplateLimitError("the template makes a number of more than 64 bits")
    return value


def joined(parts: Iterable[str]) -> str:
    """The joined parts, bounded while they come."""
    collected: list[str] = []
    total = 0
    for part in parts:
        total += len(part)
        spend(len(part))
        if total > MAX_VALUE_CHARACTERS:
            raise TemplateLimitError(f"the template writes more than {MAX_VALUE_CHARACTERS} characters")
        collected.append(part)
    return "".join(collected)


def spend_replace(text: Any, old: Any = "", new: Any = "", *rest: Any) -> None:
    """Pays for a replacement before it is made."""
    text, old, new = str(text), str(old), str(new)
    count = text.count(old)
    growth = count * max(0, len(new) - len(old))
    if growth > MAX_VALUE_CHARACTERS:
        raise TemplateLimitError(f"the template makes a value of more than {MAX_VALUE_CHARACTERS} characters")
    spend(len(text) + growth)


def small(values: Iterable[Any]) -> bool:
    """Whether numbers, or lengths of texts, are at most 64."""
    return all((len(value) if isinstance(value, str) else abs(int(value))) <= 64 for value in values)


@contextlib.contextmanager
def limits(marker: str = "", deadline: float = math.inf) -> Iterator[None]:
    """A budget for what runs inside, `marker` being a character that JSON must not escape."""
    token = _budget.set(_Budget(marker, deadline))
    try:
        yield
    finally:
        _budget.reset(token)


def current_marker() -> str:
    """The marker of the rendering that runs."""
    return _budget.get().marker
