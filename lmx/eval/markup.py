"""HTML and SVG elements that escape what they are given, so that no text of a run can become markup."""

import html
import re

_VOID = frozenset({"meta", "br", "hr", "img", "col"})
# What XML and HTML forbid even escaped, and what a model may well print.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is HTML already; any other text is escaped where it is put into an element."""


def escape(text: str) -> Markup:
    """HTML of a plain text; control characters become U+FFFD."""
    return text if isinstance(text, Markup) else Markup(html.escape(_CONTROL.sub("\ufffd", text)))


def element(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """An element: children are escaped unless they are `Markup`; attributes always are.

    `class_` stands for `class` and `stroke_width` for `stroke-width`; None leaves an attribute out.
    """
    parts = (f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items() if value is not None)
    opening = f"<{name}{''.join(parts)}>"
    return Markup(opening if name in _VOID else f"{opening}{join(*children)}</{name}>")


def join(*parts: str) -> Markup:
    """The parts one after another, each escaped unless it is `Markup`."""
    return Markup("".join(map(escape, parts)))


def _attribute(key: str) -> str:
    return key if key == "viewBox" else key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(_CONTROL.sub("\ufffd", str(value)))
