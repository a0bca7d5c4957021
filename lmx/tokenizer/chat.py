"""Conversations as ids: the checkpoint's own chat template, or one built in, and which tokens the assistant wrote."""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmx.tokenizer import budget
from lmx.tokenizer.escaping import Escaper, mapped, unused_characters
from lmx.tokenizer.protocol import Tokenizer
from lmx.tokenizer.sandbox import Template
from lmx.tokenizer.templates import BUILT_IN, TURN_ENDS
from lmx.tokenizer.text import check_text, read_file, special_pattern

Message = Mapping[str, Any]
CHAT_FILE = "chat.json"
_ROLE = re.compile("[A-Za-z][A-Za-z0-9_-]{0,63}")
_GENERATION_TAG = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation, ready for the model.

    Attributes:
      ids: token ids; BOS is among them exactly where the template writes it, so nobody else may add one.
      assistant_mask: for each id whether the assistant wrote it, the token that ends its turn included.
      text: what the template wrote.
    """

    ids: list[int]
    assistant_mask: list[bool]
    text: str


@dataclasses.dataclass(frozen=True)
class Chat:
    """How a checkpoint writes conversations.

    Attributes:
      template: source of a Jinja template, or "chatml", "llama3", "gemma" for one that is built in.
      stop_ids: ids that end the assistant's turn; the tokenizer's EOS does too.
      variables: special tokens that the template may name, as ("eos_token", "<|im_end|>"); where they are not given, `bos_token`,
        `eos_token` and `pad_token` are the tokenizer's.
    """

    template: str
    stop_ids: tuple[int, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.template not in BUILT_IN and "{" not in self.template:
            raise ValueError(f"chat template {self.template[:60]!r} is neither Jinja nor one of {', '.join(BUILT_IN)}")

    @property
    def source(self) -> str:
        """The template's Jinja."""
        return BUILT_IN.get(self.template, self.template)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendered:
        """Renders a conversation.

        No string in `messages` or `tools` becomes a special token, whatever it contains. A token never reaches over the border
        where the assistant begins to write, so the ids of `messages[:i]` with the generation prompt are the beginning of the ids of
        `messages[: i + 1]`, as they are when the model generates. What the assistant wrote is what stands in the template's
        `{% generation %}` blocks, and the turn's end directly behind; in a template without them, what follows the prompt
        of each assistant message up to the token that ends the turn.

        Args:
          tokenizer: of the checkpoint.
          messages: objects with a `role`, a `content` and whatever else the template reads.
          add_generation_prompt: end with what stands in front of an answer. The mask then leaves out earlier answers that the
            template does not tell apart.
          tools: descriptions of functions, for templates that know them.

        Raises:
          ValueError: the messages are malformed, the template refuses them, breaks the sandbox or its limits, or does not tell
            which tokens the assistant wrote.
        """
        rendering = _Rendering(self, tokenizer, _checked(messages), tools)
        text, spans = rendering.full(add_generation_prompt)
        borders, missing = rendering.borders(text)
        if not rendering.tagged:
            if missing and not add_generation_prompt:
                raise ValueError(
                    f"the chat template does not allow a mask of what the assistant wrote: message {missing[0]} changes what "
                    "stands before it; add {% generation %} blocks to the template"
                )
            spans = [(start, rendering.end(text, index, start)) for index, start in borders.items()]
        parts = rendering.parts(text, spans, sorted({*borders.values(), *(edge for span in spans for edge in span)}))
        ids = tokenizer.encode_parts([part for part, _ in parts])
        mask = [inside for part_ids, (_, inside) in zip(ids, parts, strict=True) for _ in part_ids]
        return Rendered([index for part_ids in ids for index in part_ids], mask, text.replace(rendering.marker, ""))

    def save(self, directory: Path) -> None:
        """Writes `chat.json` beside the tokenizer's files."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (directory / CHAT_FILE).write_text(text + "\n", encoding="utf-8")


def built_in(name: str, tokenizer: Tokenizer) -> Chat:
    """A built-in format with the turn ends that the tokenizer has.

    Raises:
      ValueError: the name is unknown, or the tokenizer lacks the format's tokens.
    """
    if name not in BUILT_IN:
        raise ValueError(f"chat format {name!r} is not one of {', '.join(BUILT_IN)}")
    ids = {tokenizer.id_to_piece(index): index for index in tokenizer.special_ids}
    stops = tuple(ids[text] for text in TURN_ENDS[name] if text in ids)
    if not stops:
        raise ValueError(f"the tokenizer has no {TURN_ENDS[name][0]}, which the chat format {name!r} ends turns with")
    return Chat(name, stops)


def load(directory: str | Path) -> Chat | None:
    """The chat format saved in a tokenizer's folder, None if there is none.

    Raises:
      ValueError: the file is damaged.
    """
    path = Path(directory) / CHAT_FILE
    if not path.is_file():
        return None
    try:
        value = json.loads(read_file(path))
        template, stops, variables = value["template"], value["stop_ids"], value["variables"]
        if not isinstance(template, str) or any(type(index) is not int for index in stops):
            raise TypeError("template must be a string and stop_ids a list of ids")
        return Chat(template, tuple(stops), tuple((str(name), str(text)) for name, text in variables))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _checked(messages: Sequence[Message]) -> list[Message]:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise ValueError("messages must be a list of at least one object with a role and a content")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} must be an object with a role and a content")
        if not _ROLE.fullmatch(message["role"]):
            raise ValueError(f"message {number} has the role {message['role'][:60]!r}, which is no name")
    return list(messages)


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return Template(source)


@functools.lru_cache(maxsize=32)
def _escaper(specials: frozenset[str], marker: str) -> Escaper:
    return Escaper(specials, marker)


@functools.lru_cache(maxsize=32)
def _unmarked_specials(texts: frozenset[str], marker: str) -> re.Pattern[str]:
    """Finds the specials that the template wrote; in one of a single character the marker stands behind it."""
    pattern = special_pattern(texts).pattern
    single = "".join(re.escape(text) for text in texts if len(text) == 1)
    return re.compile(f"(?![{single}]{marker})(?:{pattern})" if single else pattern)


class _Rendering:
    """One conversation while it is rendered: its text carries a marker inside every special that the template did not write."""

    def __init__(
        self, chat: Chat, tokenizer: Tokenizer, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None
    ) -> None:
        self.ids = {tokenizer.id_to_piece(index): index for index in tokenizer.special_ids}
        self.stops = {tokenizer.eos_id, *chat.stop_ids}
        self.tagged = _GENERATION_TAG.search(chat.source) is not None
        texts: list[str] = [chat.source]
        mapped([messages, tools], lambda text: texts.append(text) or text)  # type: ignore[func-returns-value]
        for text in texts:
            check_text(text)
        self.marker, self._starts, self._ends = unused_characters(texts, 3)
        escape = _escaper(frozenset(self.ids), self.marker).escape
        self._messages = mapped(messages, escape)
        names = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        self._variables: dict[str, Any] = {
            **{name: tokenizer.id_to_piece(index) for name, index in names.items() if index is not None},
            **dict(chat.variables),
            "tools": None if tools is None else mapped(tools, escape, path="tools"),
            "documents": None,
        }
        self._template = _compiled(chat.source)
        self._special = _unmarked_specials(frozenset(self.ids), self.marker)
        self._deadline = time.monotonic() + budget.CONVERSATION_SECONDS

    def full(self, add_generation_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where the generation blocks begin and end in it."""
        text = self._render(len(self._messages), add_generation_prompt)
        pieces = re.split(f"([{self._starts}{self._ends}])", text)
        spans, begun, position = [], 0, 0
        for piece in pieces:
            if piece == self._starts:
                begun = position
            elif piece == self._ends:
                end = position
                spans.append((begun, end))
            else:
                position += len(piece)
        plain = self._bare(text)
        return plain, [(start, self._with_stop(plain, end)) for start, end in spans]

    def _with_stop(self, text: str, end: int) -> int:
        """The end of a span, moved behind the token that ends the turn if that stands there."""
        following = self._special.match(text, end)
        return following.end() if following and self.ids[following[0]] in self.stops else end

    def borders(self, text: str) -> tuple[dict[int, int], list[int]]:
        """Where each assistant message begins, and the messages of which the template does not tell."""
        borders: dict[int, int] = {}
        missing: list[int] = []
        for number, message in enumerate(self._messages):
            if message["role"] != "assistant":
                continue
            try:
                prompt = self._bare(self._render(number, True))
            except ValueError:  # some templates refuse a conversation without a user
                prompt = None
            if prompt is not None and text.startswith(prompt):
                borders[number] = len(prompt)
            else:
                missing.append(number)
        return borders, missing

    def end(self, text: str, number: int, start: int) -> int:
        """Where an assistant message ends that begins at `start`: behind the first token that ends a turn."""
        for match in self._special.finditer(text, start):
            if self.ids[match[0]] in self.stops:
                return match.end()
        prefix = self._bare(self._render(number + 1, False))
        if not text.startswith(prefix) or len(prefix) < start:
            raise ValueError(
                f"the chat template does not allow a mask of what the assistant wrote: message {number} has no token at its end; "
                "add {% generation %} blocks to the template"
            )
        return len(prefix)

    def parts(self, text: str, spans: list[tuple[int, int]], cuts: list[int]) -> list[tuple[str | int, bool]]:
        """Ordinary texts and specials in a row, cut at `cuts` too, each with whether it lies in a span."""
        parts: list[tuple[str | int, bool]] = []
        position = 0
        for match in [*self._special.finditer(text), None]:
            end = len(text) if match is None else match.start()
            edges = [position, *(cut for cut in cuts if position < cut < end), end]
            for start, stop in zip(edges, edges[1:], strict=False):
                if ordinary := text[start:stop].replace(self.marker, ""):
                    parts.append((ordinary, _inside(spans, start)))
            if match is not None:
                parts.append((self.ids[match[0]], _inside(spans, match.start())))
                position = match.end()
        return parts

    def _render(self, count: int, add_generation_prompt: bool) -> str:
        variables = {**self._variables, "messages": self._messages[:count], "add_generation_prompt": add_generation_prompt}
        marks = {"starts": self._starts, "ends": self._ends, "marker": self.marker}
        return self._template.render(variables, **marks, deadline=self._deadline)

    def _bare(self, text: str) -> str:
        return text.replace(self._starts, "").replace(self._ends, "")


def _inside(spans: list[tuple[int, int]], position: int) -> bool:
    return any(start <= position < end for start, end in spans)
