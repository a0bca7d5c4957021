"""The verbs of a trained model, from the command line: generate, chat, serve, eval."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"  # before lm-eval imports `datasets`

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from configs.models import tiny
from lmx import cli
from lmx.cli import models
from lmx.model.decoder import build_model
from lmx.pipeline import artifact as artifacts
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat
from tests.fixtures import manifests

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}:{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
)
VOCAB = 130  # the specials and ASCII


def write(path: Path, chat: Chat | None) -> Path:
    config = tiny.qwen2(VOCAB, model_dim=32, num_layers=1, q_heads=2, kv_heads=1, head_dim=16, max_length=128)
    generator = np.random.default_rng(0)
    abstract = build_model(config).abstract_params()
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), leaf.dtype), abstract)
    artifacts.write_model(epath.Path(path), config=config, params=params, tokenizer=ByteTokenizer(), chat=chat)
    artifacts.write_manifest(epath.Path(path), manifests.finished())
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("models") / "tiny", Chat(TEMPLATE)))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(tmp_path_factory.mktemp("models") / "base", None))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, "\n".join(line for line in captured.err.splitlines() if not line[:2].isdigit())

    return call


def test_generate_prints_what_the_model_writes_and_the_same_again(run: Any, model: str) -> None:
    code, text, errors = run("generate", model, "--prompt", "Hello", "--max-new-tokens", "8", "--temperature", "0")
    assert code == 0 and errors == "" and text.endswith("\n") and 1 < len(text) <= 9
    assert run("generate", model, "--prompt", "Hello", "--max-new-tokens", "8", "--top-k", "1", "--seed", "3")[1] == text
    stop = text[2:4]
    cut = run("generate", model, "--prompt", "Hello", "--max-new-tokens", "8", "--temperature", "0", "--stop", stop)[1]
    assert cut == text[: text.index(stop)] + "\n"
    several = run("generate", model, "--prompt", "Hello", "--prompt", "b", "--max-new-tokens", "8", "--temperature", "0")[1]
    assert several.startswith(f"--- prompt 1: Hello\n{text}--- prompt 2: b\n")


def test_generate_streams_to_a_terminal(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--prompt", "Hello", "--max-new-tokens", "8", "--temperature", "0", "--chat"]
    text = run("generate", model, *options)[1]
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.main(["generate", model, *options]) == 0
    assert len(screen.getvalue()) == len(text)  # control characters are shown as something else


def test_generate_fills_a_file_and_goes_on_where_it_was_left(run: Any, model: str, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}], "id": "x"}\n{"prompt": "c", "n": 2}\n')
    options = ["--input", str(prompts), "--output", str(output), "--max-new-tokens", "4", "--slots", "2"]
    assert run("generate", model, *options)[0] == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["index"], row.get("id"), len(row["completions"])) for row in rows] == [(0, None, 1), (1, "x", 1), (2, None, 2)]
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) // 2])
    assert run("generate", model, *options)[0] == 0 and output.read_bytes() == whole
    code, _, message = run("generate", model, *options, "--temperature", "0.5")
    assert code == 2 and "was begun with temperature=1.0, and this command has temperature=0.5" in message


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "lmx generate takes either --prompt TEXT (as often as you like) or --input FILE"),
        (["--prompt", "a", "--input", "b"], "takes either --prompt"),
        (["--input", "b"], "--input FILE and --output FILE go together"),
        (["--prompt", ""], "the prompt is empty; write at least one character"),
        (["--prompt", "a", "--prompt", ""], "prompt 2: the prompt is empty"),
        (["--prompt", "\udcff"], "lone surrogate"),
        (["--prompt", "a" * 200], "the prompt has 201 tokens; with max_new_tokens=1 it exceeds the engine's max_length=128"),
        (["--prompt", "a", "--max-new-tokens", "500"], "with max_new_tokens=500 it exceeds"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "temperature=-1.0 must be a finite number of at least 0"),
        (["--prompt", "a", "--temperature", "nan"], "temperature=nan must be a finite number"),
        (["--prompt", "a", "--top-p", "1.5"], "top_p=1.5 must lie in (0, 1]"),
        (["--prompt", "a", "--n", "0"], "n=0 samples: ask for at least 1"),
        (["--prompt", "a", "--slots", "0"], "slots=0 of the engine must be at least 1"),
        (["--prompt", "a", "--mesh", "rows=2"], "--mesh takes sizes of the axes data, fsdp, tensor"),
        (["--prompt", "a", "--max-length", "1000"], "--max-length 1000 must lie in 2..128"),
        (["--prompt", "a", "--chat-template", "chatlm"], "--chat-template chatlm is none of"),
        (["--input", "/no/such.jsonl", "--output", "b"], "no such file of prompts"),
    ],
)
def test_bad_input_of_generate_gets_one_sentence(run: Any, model: str, arguments: list[str], sentence: str) -> None:
    code, output, message = run("generate", model, *arguments)
    assert (code, output) == (2, "") and sentence in message and message.startswith("lmx: ") and "Traceback" not in message


def test_a_base_model_has_no_chat_and_says_which_formats_there_are(run: Any, base: str) -> None:
    for arguments in (["generate", base, "--prompt", "a", "--chat"], ["chat", base]):
        code, _, message = run(*arguments)
        assert code == 2 and "no chat template" in message and "--chat-template chatml, llama3 or gemma" in message


def test_a_foreign_checkpoint_is_to_be_converted_first(run: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    code, _, message = run("generate", str(tmp_path), "--prompt", "a")
    assert code == 2 and f"run `lmx convert {tmp_path} DIR` first" in message


def test_chat_answers_line_by_line_and_keeps_the_history(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/reset\nhello\nhello\n/exit\nnever\n"))
    code, output, notices = run("chat", model, "--max-new-tokens", "4", "--temperature", "0", "--system", "S")
    assert code == 0 and "[the conversation is forgotten]" in notices
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    once = run("chat", model, "--max-new-tokens", "4", "--temperature", "0", "--system", "S")[1]
    assert output.startswith(once * 2) and len(output) > 2 * len(once)


def test_eval_prints_a_table_and_writes_a_record(run: Any, model: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('{"q": "1 + 1 =", "c": ["2", "3"], "a": 0}\n{"q": "2 + 2 =", "c": ["5", "4"], "a": 1}\n')
    (tmp_path / "task.yaml").write_text(
        f"""
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.json"}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{c}}}}"
doc_to_target: a
metric_list: [{{metric: acc}}]
"""
    )
    record = tmp_path / "results.json"
    code, output, _ = run(
        "eval", model, "--tasks", "sums", "--include-path", str(tmp_path), "--output", str(record), "--limit", "2"
    )
    assert code == 0 and "|sums" in output.replace(" ", "") and "acc" in output
    values = json.loads(record.read_text())
    assert values["results"]["sums"]["acc,none"] in (0.0, 0.5, 1.0) and values["config"]["lmx_fingerprint"] == "a" * 64
    assert {"lmx", "jax", "lm-eval", "python"} <= set(values["lmx_versions"])
    code, _, message = run("eval", model, "--tasks", "sums", "--include-path", str(tmp_path / "no"))
    assert code == 2 and "is not a folder" in message


@pytest.mark.parametrize(("verb", "module"), [("serve", "starlette"), ("eval", "lm_eval")])
def test_a_missing_extra_is_named(run: Any, model: str, monkeypatch: pytest.MonkeyPatch, verb: str, module: str) -> None:
    find = models.importlib.util.find_spec
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    code, _, message = run(verb, model, *(["--tasks", "a"] if verb == "eval" else []))
    assert code == 2 and message == f"lmx: lmx {verb} needs {module}, which is not installed: pip install 'lmx[{verb}]'"


def test_serve_answers_until_it_is_told_to_end(model: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("s3cret\n")
    command = [sys.executable, "-m", "lmx", "serve", model, "--port", "0", "--api-key-file", str(key), "--name", "mine"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            seen = []
            while " at http" not in (line := server.stderr.readline()):
                assert line, f"the server ended: {seen}"
                seen.append(line)
            url = line.split(" at ")[1].split("/v1")[0]
            assert "serving mine at http://127.0.0.1:" in line
            headers = {"Authorization": "Bearer s3cret"}
            body = {"prompt": "a", "max_tokens": 3}
            while True:  # the socket listens before the application does
                try:
                    answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert answer.json()["model"] == "mine" and answer.json()["usage"]["completion_tokens"] >= 1
            assert httpx.get(f"{url}/v1/models").status_code == 401
            server.send_signal(signal.SIGTERM)
            output, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0 and "the server has ended" in errors
    assert "s3cret" not in output + errors + "".join(seen)


def test_bad_input_of_serve_gets_one_sentence(run: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("\n")
    assert "is empty" in run("serve", model, "--api-key-file", str(tmp_path / "key"))[2]
    assert "--port 70000 must lie in 0..65535" in run("serve", model, "--port", "70000")[2]
    assert "cannot listen on 203.0.113.1, port 0" in run("serve", model, "--host", "203.0.113.1", "--port", "0")[2]
    assert "max_queue=0 must be at least 1" in run("serve", model, "--port", "0", "--max-queue", "0")[2]
