"""Chat templates are programs of strangers: Jinja in a sandbox that bounds what they reach, how long they run and what they make.

Internals of Python are out of reach, and so are methods and filters that no chat template needs. Each loop, call, operation and
value costs work, of which there is so much; the clock is looked at each time. What is not interrupted is a single operation, which
is short because no value is longer than `MAX_VALUE_CHARACTERS`.
"""

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from lmx.tokenizer.budget import (
    MAX_NUMBER,
    TemplateLimitError,
    current_marker,
    joined,
    kept,
    limits,
    size_of,
    small,
    spend,
    spend_replace,
)

MAX_TEMPLATE_CHARACTERS = 2**18
_STRING_METHODS = re.compile(
    "capitalize|casefold|count|endswith|find|index|is(alnum|alpha|ascii|decimal|digit|identifier|lower|numeric|printable|space|title"
    "|upper)|join|lower|[lr]?strip|r?(find|index|partition|split)|remove(prefix|suffix)|replace|splitlines|startswith|swapcase|title"
    "|upper"
)
_CONTAINER_METHODS = re.compile("get|items|keys|values|index|count|copy")
_FILTERS = re.compile(
    "abs|attr|capitalize|count|d|default|dictsort|e|escape|first|float|groupby|indent|int|items|join|last|length|list|lower|map|max"
    "|min|reject|rejectattr|replace|reverse|round|safe|select|selectattr|sort|string|title|trim|truncate|unique|upper|urlencode"
    "|wordcount"
)
# Filters that look at a container's entries and write none of them.
_READERS = re.compile(
    "attr|count|d|default|first|groupby|items|last|length|list|map|max|min|reject|rejectattr|reverse|select|selectattr|sort|unique"
)
_GENERATION_STARTS, _GENERATION_ENDS = "_generation_starts", "_generation_ends"


def _iterated(value: Any) -> Any:
    """What a loop goes over, as a list whose length is paid for."""
    if isinstance(value, (str, list, tuple, Mapping)):
        spend(len(value))
        return value
    items = []
    for item in value:
        spend(1)
        items.append(item)
    return items


def _concatenated(values: list[Any]) -> str:
    spend(size_of(values))
    return jinja2.runtime.str_join(values)


class _Transformer(jinja2.visitor.NodeTransformer):
    """Puts a bound around what Jinja has no hook for: loops, `~`, and literals of containers."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filter("_iterated", node.iter)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter("_concatenated", jinja2.nodes.List(node.nodes, lineno=node.lineno))

    def visit_List(self, node: jinja2.nodes.List) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter("_kept", node)

    def visit_Dict(self, node: jinja2.nodes.Dict) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter("_kept", node)

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter("_kept", node) if node.ctx == "load" else node


def _filter(name: str, node: jinja2.nodes.Node) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(cast(jinja2.nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what the assistant writes, put between two marks that are variables of the rendering."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        """The marks and the body between them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [
            jinja2.nodes.Output([jinja2.nodes.Name(name, "load")], lineno=line) for name in (_GENERATION_STARTS, _GENERATION_ENDS)
        ]
        return [marks[0], *body, marks[1]]


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace()`, without names that Python itself uses; its values have been paid for where they were made."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.sandbox.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja with methods and filters from a short list, and a price on each call, loop and operation."""

    intercepted_binops = frozenset(["+", "*", "**", "%", "//", "/", "-"])
    concat = staticmethod(joined)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        return _Transformer().visit(super()._parse(source, name, filename))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may reach an attribute: never internals, and of strings and containers the listed methods only."""
        if isinstance(obj, str):
            return _STRING_METHODS.fullmatch(attr) is not None
        if isinstance(obj, (list, tuple, Mapping)):
            return _CONTAINER_METHODS.fullmatch(attr) is not None
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """No `str.format`: its widths are not bounded."""
        return None

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operation whose result is bounded before it is made."""
        if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            count = right if isinstance(right, int) else left
            sequence = left if isinstance(right, int) else right
            spend(max(0, int(count)) * size_of(sequence) if isinstance(count, int) else 0)
        elif operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= 64 and abs(left) <= MAX_NUMBER):
            raise TemplateLimitError("the template raises a number to a power beyond 64")
        elif operator == "%" and isinstance(left, str):
            if re.search(r"[0-9]{3}|\*", left):
                raise TemplateLimitError(f"the template formats with {left[:60]!r}, whose width is not bounded")
            spend(size_of(left) + left.count("%") * (100 + size_of(right)))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            spend(size_of(left) + size_of(right))
        return kept(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call, paid for by the size of what is called on and with."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, (str, list, tuple, Mapping)):
            spend(len(owner))
        name = getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            spend_replace(owner, *args[:2])
        elif isinstance(owner, str) and name == "join" and args:
            args = (_iterated(args[0]), *args[1:])
            spend(size_of(args[0]) + len(owner) * len(args[0]))
        kept(args)
        return kept(super().call(context, obj, *args, **kwargs))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for what goes in and comes out."""
    leading = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    def bounded(*args: Any, **kwargs: Any) -> Any:
        given = args[leading:]
        for item in given:
            if isinstance(item, str) or (isinstance(item, (list, tuple, Mapping)) and not _READERS.fullmatch(name)):
                spend(size_of(item))
        if name == "replace":
            if kwargs:
                raise TemplateLimitError("the template calls the filter replace with names; lmx runs it with positions only")
            spend_replace(*given[:3])
        elif name == "join":
            args = (*args[:leading], _iterated(given[0]), *given[1:])
            separator = str(given[1] if len(given) > 1 else kwargs.get("d", ""))
            spend(size_of(args[leading]) + len(separator) * len(args[leading]))
        elif name in ("indent", "round") and (not small(given[1:2]) or not small(kwargs.values())):
            raise TemplateLimitError(f"the template calls the filter {name} with more than 64")
        return kept(function(*args, **kwargs))

    for attribute in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, attribute):
            setattr(bounded, attribute, getattr(function, attribute))
    return bounded


def _written(value: Any) -> Any:
    """What `{{ }}` writes: values of JSON only, in bounds."""
    if not isinstance(value, (str, int, float, bool, list, tuple, Mapping, jinja2.Undefined, type(None))):
        raise TemplateLimitError(f"the template writes a {type(value).__name__}, which is no text")
    spend(size_of(value))
    return value


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(form: Any) -> str:
    form = str(form)
    if len(form) > 100 or any(character.isdigit() for character in form):
        raise TemplateLimitError(f"the template asks for the date in the form {form[:100]!r}")
    return datetime.datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, characters beyond ASCII as they are."""
    if not small([indent or 0, *(separators or ())]):
        raise TemplateLimitError("the template indents JSON by more than 64 characters")
    spend(12 * size_of(value))
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii and (marker := current_marker()):
        escape = re.escape(json.dumps(marker)[1:-1])
        text = re.sub(rf"(?<!\\)((?:\\\\)*){escape}", rf"\g<1>{marker}", text)
    return kept(text)


def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
        finalize=_written,
        optimized=False,
    )
    environment.filters = {
        name: _bounded_filter(name, function) for name, function in environment.filters.items() if _FILTERS.fullmatch(name)
    } | {"_iterated": _iterated, "_concatenated": _concatenated, "_kept": kept}

    environment.filters["tojson"] = _tojson
    environment.globals = {
        "range": jinja2.sandbox.safe_range,
        "dict": _dict,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    return environment


class Template:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """Compiles a template.

        Args:
          source: Jinja, as `tokenizer_config.json` or `chat_template.jinja` has it.

        Raises:
          ValueError: the source is too long or not Jinja.
        """
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise ValueError(f"the chat template has {len(source)} characters; the limit is {MAX_TEMPLATE_CHARACTERS}")
        try:
            with limits():
                self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template is not valid Jinja, line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise ValueError(f"the chat template cannot be compiled: {_reason(error)}") from error

    def render(
        self, variables: Mapping[str, Any], *, starts: str = "", ends: str = "", marker: str = "", deadline: float = math.inf
    ) -> str:
        """The text that the template makes of `variables`.

        Args:
          variables: values of JSON by name.
          starts: written in front of what stands in a generation block.
          ends: written behind it.
          marker: a character that `tojson` never escapes.
          deadline: on `time.monotonic`'s clock, when to stop at the latest.

        Raises:
          ValueError: the template refuses the conversation, does what the sandbox forbids, or exceeds its limits.
        """
        marks = {_GENERATION_STARTS: starts, _GENERATION_ENDS: ends}
        try:
            with limits(marker, deadline):
                return joined(self._template.generate({**variables, **marks}))
        except jinja2.sandbox.SecurityError as error:
            raise ValueError(f"the chat template does what the sandbox forbids: {_reason(error)}") from error
        except TemplateLimitError as error:
            raise ValueError(f"the chat template was stopped: {_reason(error)}") from error
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses this conversation: {_reason(error)}") from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as error:
            raise ValueError(f"the chat template fails on this conversation: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line of an error's message."""
    text = " ".join(str(getattr(error, "message", None) or error).split())
    return f"{text[:500] or 'no message'} ({type(error).__name__})" if not isinstance(error, jinja2.TemplateError) else text[:500]
