"""What the bodies of /v1/completions and /v1/chat/completions may hold, and what they ask for."""

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from lmx.sampling.request import MAX_TOP_LOGPROBS, Sampling
from lmx.serve.body import kind_name
from lmx.serve.error import ApiError, bad_request
from lmx.serve.fields import Fields

MAX_STOPS = 4
MAX_SAMPLES = 128
MAX_LEGACY_LOGPROBS = 5
_COMPLETION_TOKENS = 16  # OpenAI's default for completions
_SEED_RANGE = 2**64
# Sent by clients for the keeping of books; no answer depends on them.
_HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGE_FIELDS = ("name", "tool_calls", "tool_call_id")
Prompt = str | list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """What both endpoints ask for in the same words.

    Attributes:
      model: id of the model, None = whichever is served.
      max_tokens: most new tokens; None = the endpoint's default.
      options: fields of `Sampling` that were given.
      seed: of the randomness.
      n: completions of a prompt.
      stream: send tokens as they come.
      include_usage: end a stream with the counts.
      logprobs: send log-probabilities of the tokens.
    """

    model: str | None
    max_tokens: int | None
    options: Mapping[str, Any]
    seed: int
    n: int
    stream: bool
    include_usage: bool
    logprobs: bool

    def sampling(self, max_new_tokens: int, stop_ids: Sequence[int] = ()) -> Sampling:
        """The engine's terms for it.

        Raises:
          ApiError: 400, a value out of its range.
        """
        try:
            return Sampling(max_new_tokens=max_new_tokens, stop_ids=tuple(stop_ids), **self.options)
        except ValueError as error:
            raise bad_request(str(error)) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionCall:
    """A body of /v1/completions.

    Attributes:
      prompts: texts or token ids, at least one.
      echo: answer with the prompt in front.
      draw: the rest; `max_tokens` is set, and is 0 only with `echo`.
    """

    prompts: Sequence[Prompt]
    echo: bool
    draw: Draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatCall:
    """A body of /v1/chat/completions.

    Attributes:
      messages: {"role", "content", ...}, contents as text.
      tools: for the template; None = none.
      draw: the rest.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    draw: Draw


def completion_call(body: Mapping[str, Any]) -> CompletionCall:
    """Reads a body of /v1/completions.

    Raises:
      ApiError: 400, naming the field.
    """
    fields = Fields(body)
    prompts = _prompts(fields.raw("prompt"))
    echo = fields.boolean("echo")
    top = fields.integer("logprobs", 0, MAX_LEGACY_LOGPROBS)
    max_tokens = fields.integer("max_tokens", 0 if echo else 1)
    fields.only("suffix")
    n = fields.integer("n", 1, MAX_SAMPLES) or 1
    fields.only("best_of", n)
    draw = _draw(
        fields, max_tokens=_COMPLETION_TOKENS if max_tokens is None else max_tokens, n=n, logprobs=top is not None, top=top
    )
    fields.finish()
    return CompletionCall(prompts=prompts, echo=echo, draw=draw)


def chat_call(body: Mapping[str, Any]) -> ChatCall:
    """Reads a body of /v1/chat/completions.

    Raises:
      ApiError: 400, naming the field.
    """
    fields = Fields(body)
    messages = _messages(fields.raw("messages"))
    logprobs = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not logprobs:
        raise bad_request("top_logprobs needs logprobs=true", "top_logprobs")
    old, new = fields.integer("max_tokens", 1), fields.integer("max_completion_tokens", 1)
    if old is not None and new is not None and old != new:
        sentence = f"max_tokens={old} and max_completion_tokens={new} contradict each other; send one"
        raise bad_request(sentence, "max_completion_tokens")
    tools = _tools(fields)
    fields.only("response_format", {"type": "text"})
    fields.only("modalities", ["text"])
    n = fields.integer("n", 1, MAX_SAMPLES) or 1
    draw = _draw(fields, max_tokens=old if new is None else new, n=n, logprobs=logprobs, top=top)
    fields.finish()
    return ChatCall(messages=messages, tools=tools, draw=draw)


def _draw(fields: Fields, *, max_tokens: int | None, n: int, logprobs: bool, top: int | None) -> Draw:
    options = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k"),
        "min_p": fields.number("min_p"),
        "repetition_penalty": fields.number("repetition_penalty"),
        "stop": fields.texts("stop", MAX_STOPS) or None,
        "top_logprobs": top or None,
    }
    seed = fields.integer("seed")
    stream = fields.boolean("stream")
    include_usage = _include_usage(fields, stream)
    for name in ("presence_penalty", "frequency_penalty"):
        fields.only(name, 0)
    fields.only("logit_bias", {})
    fields.harmless(*_HARMLESS)
    return Draw(
        model=fields.text("model"),
        max_tokens=max_tokens,
        options={name: value for name, value in options.items() if value is not None},
        seed=secrets.randbits(64) if seed is None else seed % _SEED_RANGE,  # OpenAI's seeds have a sign
        n=n,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs,
    )


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.raw("stream_options")
    if options is None:
        return False
    if not stream:
        raise bad_request("stream_options needs stream=true", "stream_options")
    inner = _object(options, "stream_options")
    include_usage = inner.boolean("include_usage")
    inner.harmless("include_obfuscation")
    inner.finish()
    return include_usage


def _prompts(value: Any) -> list[Prompt]:
    """The prompts in any of the four forms: a text, texts, token ids, lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(_is_id(item) for item in value):
            return [value]
        if all(isinstance(item, list) and all(_is_id(inner) for inner in item) for item in value):
            return value
    found = "an empty list" if value == [] else "a list of something else" if isinstance(value, list) else kind_name(value)
    raise bad_request(f"prompt must be a string, a list of strings, token ids or lists of token ids; found {found}", "prompt")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise bad_request(f"messages must be a list of at least one message, found {kind_name(value)}", "messages")
    return [_message(_object(item, f"messages.{index}")) for index, item in enumerate(value)]


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.text("role")
    if role not in _ROLES:
        raise bad_request(f"{fields.name('role')} must be one of {', '.join(_ROLES)}; found {role!r}", fields.name("role"))
    message = {"role": "system" if role == "developer" else role}
    content = _content(fields)
    extra = {name: fields.raw(name) for name in _MESSAGE_FIELDS if fields.given(name)}
    if content is None and "tool_calls" not in extra:
        raise bad_request(f"{fields.name('content')} is missing", fields.name("content"))
    for name in ("refusal", "audio", "annotations", "function_call", "reasoning_content"):
        fields.only(name, [])
    fields.finish()
    return {**message, "content": content or "", **extra}


def _content(fields: Fields) -> str | None:
    """A message's text; parts of text are joined."""
    value = fields.raw("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"{fields.name('content')} must be a string or a list of text parts, found {kind_name(value)}")
    texts = []
    for index, item in enumerate(value):
        part = _object(item, f"{fields.name('content')}.{index}")
        kind = part.text("type")
        if kind != "text":
            sentence = f"{part.name('type')} is {kind!r}, but this model reads text alone"
            raise bad_request(sentence, part.name("type"), "unsupported_content")
        texts.append(part.text("text") or "")
        part.finish()
    return "".join(texts)


def _tools(fields: Fields) -> list[Mapping[str, Any]] | None:
    tools = fields.raw("tools")
    fields.only("tool_choice", "auto", "none")
    fields.only("parallel_tool_calls", True)
    fields.only("functions", [])
    fields.only("function_call", "auto", "none")
    if not tools or fields.raw("tool_choice") == "none":
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_request("tools must be a list of objects", "tools")
    return tools


def _object(value: Any, where: str) -> Fields:
    if not isinstance(value, dict):
        raise bad_request(f"{where} must be an object, found {kind_name(value)}", where)
    return Fields(value, where)


def check_model(asked: str | None, served: str) -> None:
    """Raises ApiError, 404, when another model is asked for than the one that is served."""
    if asked is not None and asked != served:
        sentence = f"the model {asked[:200]!r} does not exist here; this server has {served!r}"
        raise ApiError(404, sentence, param="model", code="model_not_found")
