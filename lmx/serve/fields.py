"""Reading a JSON object field by field: every value checked, every field accounted for, one sentence for what is wrong."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from lmx.serve.body import kind_name
from lmx.serve.error import bad_request


class Fields:
    """The fields of a JSON object. A field that is null counts as absent, as OpenAI's API has it."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        """Reads `values`; `where` is their path in the body, for messages."""
        self._values, self._where = values, where
        self._known: set[str] = set()

    def name(self, field: str) -> str:
        """Path of a field in the body."""
        return f"{self._where}.{field}" if self._where else field

    def given(self, field: str) -> bool:
        """Whether the field is there and not null; it counts as read."""
        self._known.add(field)
        return self._values.get(field) is not None

    def raw(self, field: str) -> Any:
        """The value as it came, None if absent."""
        return self._values[field] if self.given(field) else None

    def boolean(self, field: str, default: bool = False) -> bool:
        """True or false."""
        value = self.raw(field)
        if value is None:
            return default
        return bool(value) if isinstance(value, bool) else self._refuse(field, "true or false")

    def integer(self, field: str, low: int | None = None, high: int | None = None) -> int | None:
        """A whole number between `low` and `high`."""
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(field, "a whole number")
        return self._within(field, value, low, high)

    def number(self, field: str, low: float | None = None, high: float | None = None) -> float | None:
        """A finite number between `low` and `high`."""
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e300:
            self._refuse(field, "a finite number")
        return self._within(field, float(value), low, high)

    def text(self, field: str) -> str | None:
        """A string."""
        value = self.raw(field)
        if value is not None and not isinstance(value, str):
            self._refuse(field, "a string")
        return value

    def texts(self, field: str, most: int) -> tuple[str, ...]:
        """A string or a list of at most `most`; () if absent."""
        value = self.raw(field)
        values = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            self._refuse(field, "a string or a list of strings")
        if len(values) > most:
            raise bad_request(f"{self.name(field)} has {len(values)} strings; at most {most} are allowed", self.name(field))
        return tuple(values)

    def harmless(self, *fields: str) -> None:
        """Fields that change no result, whatever they hold."""
        self._known.update(fields)

    def only(self, field: str, *neutral: Any) -> None:
        """A field of which only values that change nothing can be honoured; any other is refused, never ignored.

        Raises:
          ApiError: 400.
        """
        if self.given(field) and not any(_same(self._values[field], value) for value in neutral):
            allowed = " or ".join(_shown(value) for value in (*neutral, None))
            sentence = f"{self.name(field)} is not supported by this server; leave it out (or send {allowed})"
            raise bad_request(sentence, self.name(field), "unsupported_parameter")

    def finish(self) -> None:
        """Refuses the first field that nothing has asked for.

        Raises:
          ApiError: 400.
        """
        for field in self._values:
            if field not in self._known:
                near = difflib.get_close_matches(str(field), self._known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                sentence = f"unknown field {self.name(field[:80])!r}: it could change the result, so it is not ignored{hint}"
                raise bad_request(sentence, self.name(field[:80]), "unknown_parameter")

    def _within(self, field: str, value: Any, low: float | None, high: float | None) -> Any:
        if (low is not None and value < low) or (high is not None and value > high):
            span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
            raise bad_request(f"{self.name(field)}={value} must be {span}", self.name(field))
        return value

    def _refuse(self, field: str, expected: str) -> Any:
        sentence = f"{self.name(field)} must be {expected}, found {kind_name(self._values[field])}"
        raise bad_request(sentence, self.name(field))


def _same(value: Any, neutral: Any) -> bool:
    """Equality that keeps numbers and booleans apart."""
    return (
        type(value) in (int, float)
        and type(neutral) in (int, float)
        and math.isclose(value, neutral)
        or (type(value) is type(neutral) and value == neutral)
    )


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
