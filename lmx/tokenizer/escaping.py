"""Special tokens that stand in a conversation's own strings, told apart from those that the chat template writes."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

# Unicode keeps these for a program's own use: text that is interchanged does not have them.
NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


@dataclasses.dataclass(frozen=True)
class Escaper:
    """Puts a marker into every special text, and into every beginning or end of one at the edge of a string.

    The edges count because a template may join two strings. A string that is an inner part of a special stays: templates that
    build specials from a role, as `<|user|>`, need it.

    Attributes:
      specials: texts of the special tokens.
      marker: one character that none of the strings has.
    """

    specials: frozenset[str]
    marker: str

    @functools.cached_property
    def _found(self) -> re.Pattern[str]:
        return re.compile("(?=" + ("|".join(map(re.escape, sorted(self.specials))) or "(?!)") + ")")

    @functools.cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(text[:size] for text in self.specials for size in range(1, len(text)))

    @functools.cached_property
    def _ends(self) -> frozenset[str]:
        return frozenset(text[size:] for text in self.specials for size in range(1, len(text)))

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self.specials), default=0)

    def escape(self, text: str) -> str:
        """The text with markers, so that no special in it, nor one made of it and its neighbours, can be found."""
        places = {match.start() + 1 for match in self._found.finditer(text)}
        for size in range(1, min(self._longest, len(text) + 1)):
            if text[len(text) - size :] in self._beginnings:
                places.add(len(text) - size + 1)
            if text[:size] in self._ends:
                places.add(0)
        edges = [0, *sorted(places), len(text)]
        return self.marker.join(text[start:end] for start, end in itertools.pairwise(edges))


def mapped(value: Any, change: Callable[[str], str], *, path: str = "messages") -> Any:
    """A copy of a value of JSON with `change` applied to its strings, names of roles aside.

    Raises:
      ValueError: the value holds something that JSON does not.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return change(str(value))
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{path} has the key {key!r}; keys must be strings")
            result[change(key)] = (
                str(item) if key == "role" and isinstance(item, str) else mapped(item, change, path=f"{path}.{key}")
            )
        return result
    if isinstance(value, (list, tuple)):
        return [mapped(item, change, path=f"{path}[{number}]") for number, item in enumerate(value)]
    raise ValueError(f"{path} is a {type(value).__name__}; a conversation holds strings, numbers, lists and objects")


def unused_characters(texts: list[str], count: int) -> list[str]:
    """Noncharacters that none of the texts has.

    Raises:
      ValueError: there are fewer than `count`.
    """
    free = [character for character in NONCHARACTERS if not any(character in text for text in texts)]
    if len(free) < count:
        raise ValueError(f"the conversation uses {len(NONCHARACTERS) - len(free)} of Unicode's noncharacters; remove some of them")
    return free[:count]
