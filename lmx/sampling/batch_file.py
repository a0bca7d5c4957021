"""Many prompts from a file of JSON lines, their completions to another: resumable, one line a prompt."""

import collections
import dataclasses
import difflib
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from lmx.core import storage
from lmx.core.logging import logger
from lmx.sampling.engine import Engine
from lmx.sampling.prompt import encode_messages, encode_text
from lmx.sampling.request import Completion, Request, Sampling
from lmx.tokenizer.chat import Chat
from lmx.tokenizer.protocol import Tokenizer

PROMPT_FIELDS = ("prompt", "messages", "prompt_ids")
_NUMBERS = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float, "max_new_tokens": int}
_FIELDS = (*PROMPT_FIELDS, "id", *_NUMBERS, "stop", "seed", "n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What holds for every line that says nothing else.

    Attributes:
      sampling: how to draw; its `max_new_tokens` may be lowered where a line has less room (see `fit`).
      seed: of every line: a line's answer is the one it would get alone, whatever stands around it.
      n: completions of a prompt.
      chat: a "prompt" is a user's message, not a text to continue.
      logprobs: write the tokens' log-probabilities.
      fit: lower max_new_tokens to the room that a prompt leaves, instead of refusing the line.
    """

    sampling: Sampling
    seed: int = 0
    n: int = 1
    chat: bool = False
    logprobs: bool = False
    fit: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """What lines are read with.

    Attributes:
      tokenizer: encodes texts.
      chat: renders messages; None where the model has no chat format.
      max_length: most tokens of a prompt and its completion.
      vocab_size: ids that a prompt may hold lie below.
    """

    tokenizer: Tokenizer
    chat: Chat | None
    max_length: int
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class Line:
    """One prompt of a file.

    Attributes:
      index: which line, from 0.
      given: its "id", if any, and its prompt, as they stand there.
      request: what the engine is asked.
    """

    index: int
    given: Mapping[str, Any]
    request: Request


def read_lines(path: epath.PathLike, options: BatchOptions, reader: Reader) -> list[Line]:
    """Reads and checks every line: {"prompt": text} or {"messages": [...]} or {"prompt_ids": [...]}, and more where wanted.

    Besides the prompt a line may have an "id", and values of its own for max_new_tokens, temperature, top_k, top_p, min_p,
    repetition_penalty, stop, seed and n. Lines of white space are passed over.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line can't be used; the message has its number, counted from 1. Or there is no line at all.
    """
    source = storage.as_path(path)
    if not source.is_file():
        raise FileNotFoundError(2, "there is no such file of prompts", str(source))
    lines = []
    for index, data in enumerate(source.read_bytes().split(b"\n")):
        if not data.strip():
            continue
        try:
            lines.append(_line(index, data, options, reader))
        except ValueError as error:
            raise ValueError(f"line {index + 1} of {source}: {error}") from error
    if not lines:
        raise ValueError(f'{source} holds no prompt: write one JSON object a line, such as {{"prompt": "Hello"}}')
    return lines


def describe_job(
    path: epath.PathLike, options: BatchOptions, *, model: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a file of completions depends on: the prompts' digest, the model's fingerprint, and the options, flat."""
    digest = hashlib.sha256(storage.as_path(path).read_bytes()).hexdigest()
    flat = dataclasses.asdict(options)
    return {"prompts_sha256": digest, "model": model, **flat.pop("sampling"), **flat, **(more or {})}


def run(
    engine: Engine, lines: Sequence[Line], output: epath.PathLike, *, job: Mapping[str, Any], logprobs: bool, slots: int
) -> None:
    """Completes what is missing of a file of completions, and then brings it into the order of the prompts.

    Each result is appended as soon as it is there: a kill leaves at most half a line, which the next run cuts off before it goes
    on. While a run is on its way lines stand in the order in which they were finished; each has its "index". Beside the file lies
    OUTPUT.job.json, which says what it was made from.

    Args:
      engine: idle.
      lines: of the input.
      output: file of JSON lines {"index", "id", prompt, "prompt_tokens", "completions": [{"text", "finish_reason", "tokens"}]}.
      job: what the completions depend on, as `describe_job` says it.
      logprobs: write "token_ids" and "logprobs" of each completion too.
      slots: of the engine.

    Raises:
      ValueError: the file was made by another job, or isn't such a file, or a line can't be served.
      LockedError: another process is writing it.
    """
    for line in lines:
        try:
            engine.check(line.request)
        except ValueError as error:
            raise ValueError(f"line {line.index + 1} of the prompts: {error}") from error
    target = storage.as_path(output)
    with storage.lock(target.parent, f".{target.name}.lock"):
        done = _resume(target, job, {line.index for line in lines})
        if done:
            logger.info("%s: %d of %d prompts are finished already", target, len(done), len(lines))
        todo = [line for line in lines if line.index not in done]
        if todo:
            _complete(engine, todo, target, logprobs=logprobs, slots=slots, total=len(lines))
        _sort(target)


# ----- reading


def _line(index: int, data: bytes, options: BatchOptions, reader: Reader) -> Line:
    try:
        row = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f'it must be an object such as {{"prompt": "Hello"}}, found {type(row).__name__}')
    for name in row:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1)
            raise ValueError(
                f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_FIELDS)}")
            )
    ids = _prompt_ids(row, options, reader)
    sampling = _sampling(row, options, room=reader.max_length - len(ids))
    if len(ids) + sampling.max_new_tokens > reader.max_length:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; with max_new_tokens={sampling.max_new_tokens} it exceeds the context of "
            f"{reader.max_length}; shorten it or ask for fewer tokens"
        )
    request = Request(prompt=ids, sampling=sampling, seed=_whole(row, "seed", options.seed), n=_whole(row, "n", options.n))
    return Line(index, {name: row[name] for name in ("id", *PROMPT_FIELDS) if name in row}, request)


def _prompt_ids(row: Mapping[str, Any], options: BatchOptions, reader: Reader) -> list[int]:
    kinds = [name for name in PROMPT_FIELDS if name in row]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise ValueError(f"it must have one of {', '.join(PROMPT_FIELDS)}; found {found}")
    (kind,) = kinds
    value = row[kind]
    if kind == "prompt":
        if not isinstance(value, str):
            raise ValueError(f"prompt must be a text, found {type(value).__name__}")
        if not value:
            raise ValueError("the prompt is empty; write at least one character")
        if not options.chat:
            return encode_text(reader.tokenizer, value)
        value = [{"role": "user", "content": value}]
    if kind == "prompt_ids":
        if not isinstance(value, list) or not value or not all(type(item) is int for item in value):
            raise ValueError("prompt_ids must be a list of at least one token id")
        wrong = next((item for item in value if not 0 <= item < reader.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"prompt_ids holds {wrong}, but the model's vocabulary is 0..{reader.vocab_size - 1}")
        return value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError('messages must be a list of objects such as {"role": "user", "content": "Hello"}')
    return encode_messages(reader.tokenizer, reader.chat, value)


def _sampling(row: Mapping[str, Any], options: BatchOptions, room: int) -> Sampling:
    changes: dict[str, Any] = {}
    for name, kind in _NUMBERS.items():
        if name in row:
            value = row[name]
            if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
                raise ValueError(f"{name} must be a {'whole ' if kind is int else ''}number, found {value!r}")
            changes[name] = value if kind is int else float(value)
    if "stop" in row:
        stop = [row["stop"]] if isinstance(row["stop"], str) else row["stop"]
        if not isinstance(stop, list):
            raise ValueError(f"stop must be a text or a list of texts, found {stop!r}")
        changes["stop"] = tuple(stop)
    if options.fit and "max_new_tokens" not in row:
        changes["max_new_tokens"] = max(1, min(options.sampling.max_new_tokens, room))
    return dataclasses.replace(options.sampling, **changes)


def _whole(row: Mapping[str, Any], name: str, default: int) -> int:
    value = row.get(name, default)
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, found {value!r}")
    return value


# ----- writing


def _resume(target: epath.Path, job: Mapping[str, Any], indices: set[int]) -> set[int]:
    """Indices that are finished; the file is cut back to whole lines, the record of the job is written if there is none."""
    record = target.with_name(f"{target.name}.job.json")
    if not target.exists():
        storage.write_json(record, job)
        return set()
    if not record.exists():
        raise ValueError(f"{target} exists, and not by this command ({record.name} is missing); name another --output or remove it")
    former, wanted = storage.read_json(record), json.loads(json.dumps(job))
    if not isinstance(former, dict):
        raise ValueError(f"{record} is damaged: expected an object; remove it and {target.name} to begin anew")
    for name in {**wanted, **former}:
        if former.get(name) != wanted.get(name):
            raise ValueError(
                f"{target} was begun with {name}={former.get(name)!r}, and this command has {name}={wanted.get(name)!r}; give the "
                "same prompts, model and options to go on with it, or name another --output"
            )
    rows = storage.read_json_lines(target)
    done = {row["index"] for row in rows if isinstance(row, dict) and row.get("index") in indices}
    if len(done) != len(rows):
        raise ValueError(f"{target} has lines that this command did not write; name another --output or remove it")
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        storage.write_bytes(target, whole)
    return done


def _complete(engine: Engine, lines: Sequence[Line], target: epath.Path, *, logprobs: bool, slots: int, total: int) -> None:
    waiting = collections.deque(lines)
    open_lines: dict[int, tuple[Line, dict[int, Completion]]] = {}
    tokens, started = 0, time.monotonic()
    output = storage.JsonLines(target)
    bar = tqdm(total=total, initial=total - len(lines), desc="generate", unit="prompt", disable=None, dynamic_ncols=True)
    try:
        while waiting or engine.busy:
            while waiting and engine.queued < slots:
                line = waiting.popleft()
                open_lines[engine.submit(line.request)] = (line, {})
            for event in engine.step():
                tokens += len(event.tokens)
                line, completions = open_lines[event.request_id]
                if event.completion is None:
                    continue
                completions[event.sample] = event.completion
                if len(completions) == line.request.n:
                    output.append(_record(line, completions, logprobs))
                    del open_lines[event.request_id]
                    bar.update()
            bar.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
        output.flush()
    finally:
        output.close()
        bar.close()
    seconds = time.monotonic() - started
    logger.info("%d prompts, %d tokens in %.1f s, %.0f tokens/s", len(lines), tokens, seconds, tokens / seconds)


def _record(line: Line, completions: Mapping[int, Completion], logprobs: bool) -> dict[str, Any]:
    rows = []
    for _, done in sorted(completions.items()):
        row: dict[str, Any] = {"text": done.text, "finish_reason": done.finish_reason, "tokens": len(done.tokens)}
        if logprobs:
            row |= {
                "token_ids": done.tokens,
                "logprobs": [value if math.isfinite(value) else None for value in done.logprobs.tolist()],
            }
        rows.append(row)
    return {"index": line.index, **line.given, "prompt_tokens": len(line.request.prompt), "completions": rows}


def _sort(target: epath.Path) -> None:
    """Puts the lines into the order of the prompts, atomically."""
    lines = target.read_bytes().splitlines(keepends=True)
    ordered = sorted(lines, key=lambda line: json.loads(line)["index"])
    if ordered != lines:
        storage.write_bytes(target, b"".join(ordered))
