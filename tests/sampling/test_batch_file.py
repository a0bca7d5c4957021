"""Files of prompts: checked before anything runs, resumed where they were left, in the order of the prompts at the end."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.model.decoder import build_model
from lmx.sampling import batch_file
from lmx.sampling.batch_file import BatchOptions, Reader
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Request, Sampling
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat

BYTES = ByteTokenizer()
CHAT = Chat("{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}<s>")
CONTEXT, VOCAB = 64, 130  # the specials and ASCII
OPTIONS = BatchOptions(sampling=Sampling(max_new_tokens=5), seed=3)
ROWS: list[dict[str, Any]] = [
    {"prompt": "long one", "max_new_tokens": 30},
    {"prompt": "b", "id": "second", "temperature": 0, "n": 2},
    {"prompt_ids": [1, 50, 51], "seed": 9, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
    {"messages": [{"role": "user", "content": "hi"}], "id": 4, "stop": ["zz"]},
    {"prompt": "e", "temperature": 1.5},
    {"prompt": "f"},
    {"prompt": "f"},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = build_model(tiny.qwen2(VOCAB, model_dim=32, num_layers=1, q_heads=2, kv_heads=1, head_dim=16, max_length=CONTEXT))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), leaf.dtype), model.abstract_params())
    config = EngineConfig(slots=2, max_length=CONTEXT)
    return Engine(model, params, config=config, eos_ids=[BYTES.eos_id], tokenizer=BYTES, vocab_size=VOCAB)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def complete(engine: Engine, prompts: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(output: Path, options: BatchOptions = OPTIONS, driver: Any = None) -> list[dict[str, Any]]:
        lines = batch_file.read_lines(prompts, options, Reader(BYTES, CHAT, CONTEXT, VOCAB))
        job = batch_file.describe_job(prompts, options, model="m")
        batch_file.run(driver or engine, lines, output, job=job, logprobs=options.logprobs, slots=2)
        return [json.loads(line) for line in output.read_text().splitlines()]

    return run


class Breaking:
    """An engine that is interrupted after some steps."""

    def __init__(self, engine: Engine, steps: int) -> None:
        self._engine, self._steps = engine, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Any]:
        self._steps -= 1
        if self._steps < 0:
            while self._engine.busy:  # what is under way is lost
                self._engine.step()
            raise KeyboardInterrupt
        return self._engine.step()


def test_every_line_gets_the_answer_it_would_get_alone_in_the_order_of_the_prompts(
    engine: Engine, complete: Any, tmp_path: Path
) -> None:
    rows = complete(tmp_path / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(len(ROWS)))
    for row, given in zip(rows, ROWS, strict=True):
        assert {name: row[name] for name in ("id", "prompt", "messages", "prompt_ids") if name in row} == {
            name: value for name, value in given.items() if name in ("id", "prompt", "messages", "prompt_ids")
        }
    assert [len(row["completions"]) for row in rows] == [1, 2, 1, 1, 1, 1, 1]
    request = Request(prompt=[BYTES.bos_id, *BYTES.encode("e")], sampling=Sampling(max_new_tokens=5, temperature=1.5), seed=3)
    (alone,) = engine.run([request])[0]
    assert rows[4]["completions"] == [{"text": alone.text, "finish_reason": alone.finish_reason, "tokens": len(alone.tokens)}]
    assert rows[4]["prompt_tokens"] == 2 and rows[3]["prompt_tokens"] == len(CHAT.encode(BYTES, ROWS[3]["messages"]).ids)
    assert rows[1]["completions"][0] == rows[1]["completions"][1]  # greedy
    assert rows[5]["completions"] == rows[6]["completions"]  # the seed is the file's


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_interrupted_run_goes_on_and_gives_the_same_file(engine: Engine, complete: Any, tmp_path: Path, steps: int) -> None:
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    complete(whole)
    with pytest.raises(KeyboardInterrupt):
        complete(broken, driver=Breaking(engine, steps))
    before = broken.read_bytes()
    finished = before.count(b"\n")
    assert finished < len(ROWS)
    broken.write_bytes(before + b'{"index": 6, "compl')  # what a kill may leave
    counting = Breaking(engine, 10**6)
    submitted: list[Request] = []
    counting.submit = lambda request: submitted.append(request) or engine.submit(request)  # type: ignore[attr-defined,func-returns-value]
    complete(broken, driver=counting)
    assert broken.read_bytes() == whole.read_bytes()
    assert len(submitted) == len(ROWS) - finished


def test_a_finished_file_is_left_as_it_is(engine: Engine, complete: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    complete(output)
    before = output.stat().st_mtime_ns, output.read_bytes()
    complete(output, driver=Breaking(engine, 0))
    assert (output.stat().st_mtime_ns, output.read_bytes()) == before


def test_changed_prompts_or_options_are_refused(complete: Any, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    complete(output)
    other = dataclasses.replace(OPTIONS, sampling=Sampling(max_new_tokens=6))
    with pytest.raises(ValueError, match="was begun with max_new_tokens=5, and this command has max_new_tokens=6; give the same"):
        complete(output, other)
    with pytest.raises(ValueError, match="seed=3, and this command has seed=4"):
        complete(output, dataclasses.replace(OPTIONS, seed=4))
    prompts.write_text(json.dumps({"prompt": "another"}) + "\n")
    with pytest.raises(ValueError, match="was begun with prompts_sha256="):
        complete(output)


def test_a_file_of_somebody_else_is_not_touched(complete: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("my notes\n")
    with pytest.raises(ValueError, match="out.jsonl exists, and not by this command"):
        complete(output)
    assert output.read_text() == "my notes\n"
    other = tmp_path / "other.jsonl"
    complete(other)
    other.write_text('{"index": 99}\n')
    with pytest.raises(ValueError, match="has lines that this command did not write"):
        complete(other)


def test_log_probabilities_are_written_on_request(complete: Any, tmp_path: Path) -> None:
    rows = complete(tmp_path / "out.jsonl", dataclasses.replace(OPTIONS, logprobs=True))
    for row in rows:
        for completion in row["completions"]:
            assert len(completion["logprobs"]) == len(completion["token_ids"]) == completion["tokens"] > 0
            assert all(value <= 0 for value in completion["logprobs"])


def test_a_prompt_is_a_message_in_a_chat(prompts: Path) -> None:
    options = dataclasses.replace(OPTIONS, chat=True)
    lines = batch_file.read_lines(prompts, options, Reader(BYTES, CHAT, CONTEXT, VOCAB))
    assert lines[5].request.prompt == BYTES.encode_with_specials("<s>user: f</s><s>")
    assert lines[2].request.prompt == [1, 50, 51]


def test_without_a_wish_an_answer_takes_the_room_there_is(prompts: Path) -> None:
    options = BatchOptions(sampling=Sampling(max_new_tokens=1000), fit=True)
    lines = batch_file.read_lines(prompts, options, Reader(BYTES, CHAT, CONTEXT, VOCAB))
    assert [line.request.sampling.max_new_tokens for line in lines[:2]] == [30, CONTEXT - 2]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{", "it is not JSON"),
        (b"[1]", "it must be an object such as"),
        (b'{"prompt": "\xff"}', "it is not UTF-8: invalid start byte at byte 12"),
        (b'{"prompt": ""}', "the prompt is empty"),
        (b'{"prompt": "\\ud800"}', "lone surrogate"),
        (b'{"prompt": 5}', "prompt must be a text, found int"),
        (b'{"id": 5}', "it must have one of prompt, messages, prompt_ids; found none"),
        (b'{"prompt": "a", "messages": []}', "found prompt and messages"),
        (b'{"messages": []}', "there is no message"),
        (b'{"messages": ["hi"]}', "messages must be a list of objects"),
        (b'{"messages": [{"content": "hi"}]}', "must be an object with a role"),
        (b'{"prompt_ids": []}', "at least one token id"),
        (b'{"prompt_ids": [5, 130]}', "prompt_ids holds 130, but the model's vocabulary is 0..129"),
        (b'{"prompt_ids": [5, -1]}', "prompt_ids holds -1"),
        (b'{"prompt": "a", "temprature": 1}', "unknown field 'temprature'; did you mean 'temperature'?"),
        (b'{"prompt": "a", "temperature": "hot"}', "temperature must be a number, found 'hot'"),
        (b'{"prompt": "a", "temperature": -1}', "temperature=-1.0 must be a finite number of at least 0"),
        (b'{"prompt": "a", "temperature": NaN}', "temperature=nan must be a finite number"),
        (b'{"prompt": "a", "top_k": 1.5}', "top_k must be a whole number, found 1.5"),
        (b'{"prompt": "a", "n": 0}', "n=0 samples: ask for at least 1"),
        (b'{"prompt": "a", "seed": -1}', "seed=-1 must lie in"),
        (b'{"prompt": "a", "stop": 5}', "stop must be a text or a list of texts"),
        (b'{"prompt": "a", "max_new_tokens": 0}', "max_new_tokens=0 must be at least 1"),
        (b'{"prompt": "' + b"a" * 60 + b'"}', "the prompt has 61 tokens; with max_new_tokens=5 it exceeds the context of 64"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_by_its_number(tmp_path: Path, line: bytes, sentence: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n\n' + line + b'\n{"prompt": "good"}\n')
    with pytest.raises(ValueError) as caught:
        batch_file.read_lines(path, OPTIONS, Reader(BYTES, CHAT, CONTEXT, VOCAB))
    assert f"line 3 of {path}: " in str(caught.value) and sentence in str(caught.value)


def test_files_without_a_prompt_are_refused(tmp_path: Path) -> None:
    reader = Reader(BYTES, None, CONTEXT, VOCAB)
    with pytest.raises(FileNotFoundError, match="no such file of prompts"):
        batch_file.read_lines(tmp_path / "no.jsonl", OPTIONS, reader)
    (tmp_path / "empty.jsonl").write_text("\n  \n")
    with pytest.raises(ValueError, match="holds no prompt: write one JSON object a line"):
        batch_file.read_lines(tmp_path / "empty.jsonl", OPTIONS, reader)
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    with pytest.raises(ValueError, match="line 1 of .*: this model has no chat template.*chatml, llama3 or gemma"):
        batch_file.read_lines(tmp_path / "chat.jsonl", OPTIONS, reader)


def test_a_line_that_the_engine_cannot_serve_stops_all_before_anything_is_written(
    engine: Engine, prompts: Path, tmp_path: Path
) -> None:
    lines = batch_file.read_lines(prompts, OPTIONS, Reader(BYTES, CHAT, CONTEXT, VOCAB + 100))
    bad = dataclasses.replace(lines[2], request=Request(prompt=[200], sampling=Sampling(max_new_tokens=2)))
    with pytest.raises(ValueError, match="line 3 of the prompts: prompt 0 holds token id 200"):
        batch_file.run(engine, [*lines[:2], bad], tmp_path / "out.jsonl", job={}, logprobs=False, slots=2)
    assert not list(tmp_path.glob("out.jsonl*"))
