"""The lm-evaluation-harness over a tiny model, its scores against whole forward passes; no network."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from configs.models import tiny
from lmx.eval import run_harness
from lmx.eval.harness import Evaluated, LmxLM
from lmx.kernels import head
from lmx.model.decoder import build_model
from lmx.sampling import padding
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Request, Sampling
from lmx.sampling.score import rolling_windows
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat

BYTES = ByteTokenizer()
CONTEXT, VOCAB = 96, 130  # the specials and ASCII
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant:\n{% endif %}"
)
CHOICES = [
    {"question": "Which is a fruit?", "choices": ["apple", "stone", "chair", "river"], "answer": 0},
    {"question": "Which is a colour?", "choices": ["seven", "green", "fast", "under"], "answer": 1},
    {"question": "Which is a number?", "choices": ["dog", "tree", "nine", "blue"], "answer": 2},
]
PROBLEMS = [{"question": "What is 2 + 3?", "answer": "It is 5. #### 5"}, {"question": "What is 4 + 4?", "answer": "#### 8"}]
MULTIPLE_CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
GENERATION = """
task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{{{{answer.split('#### ')[-1]}}}}"
generation_kwargs: {{until: ["Q:", "</s>"], do_sample: false, max_gen_toks: 12}}
filter_list:
  - name: first-character
    filter:
      - {{function: regex, regex_pattern: "(.)"}}
      - {{function: take_first}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.0}}
"""


@pytest.fixture(scope="module")
def evaluated() -> Evaluated:
    model = build_model(tiny.qwen2(VOCAB, model_dim=32, num_layers=1, q_heads=2, kv_heads=1, head_dim=16, max_length=CONTEXT))
    generator = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), leaf.dtype), model.abstract_params())
    return Evaluated(model=model, params=params, tokenizer=BYTES, chat=Chat(TEMPLATE), name="tiny", fingerprint="f" * 64)


@pytest.fixture(scope="module")
def engine(evaluated: Evaluated) -> Engine:
    config = EngineConfig(slots=4, max_length=CONTEXT)
    return Engine(evaluated.model, evaluated.params, config=config, eos_ids=[BYTES.eos_id], tokenizer=BYTES, vocab_size=VOCAB)


@pytest.fixture
def lm(evaluated: Evaluated, engine: Engine) -> LmxLM:
    return LmxLM(evaluated, lambda: engine, batch_size=4)


@pytest.fixture(scope="module")
def naive(evaluated: Evaluated) -> Callable[[list[int], list[int]], tuple[float, bool]]:
    """Log-probability of a continuation, and whether it is greedy, from the logits of a whole forward pass in float64."""
    forward = jax.jit(lambda batch: head.logits(evaluated.model.apply(evaluated.params, batch)))

    def loglikelihood(context: list[int], continuation: list[int]) -> tuple[float, bool]:
        inputs = (context + continuation)[-CONTEXT - 1 :][:-1]  # the last token is only predicted
        tokens, lengths = padding.pad_rows([inputs], rows=1, length=CONTEXT, pad_id=0)
        logits = np.asarray(forward(padding.right_padded(jnp.asarray(tokens), jnp.asarray(lengths))), np.float64)[0]
        rows = logits[len(inputs) - len(continuation) : len(inputs)]
        logprobs = rows - np.log(np.sum(np.exp(rows), axis=-1, keepdims=True))
        return float(logprobs[range(len(rows)), continuation].sum()), bool((rows.argmax(-1) == continuation).all())

    return loglikelihood


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, rows, source in (("choice", CHOICES, MULTIPLE_CHOICE), ("generation", PROBLEMS, GENERATION)):
        data = tmp_path / f"{name}.json"
        data.write_text("\n".join(map(json.dumps, rows)))
        (folder / f"{name}.yaml").write_text(source.format(data=data, cache=tmp_path / "cache"))
    return folder


def instance(kind: Any, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def with_bos(text: str) -> list[int]:
    return [BYTES.bos_id, *BYTES.encode(text)]


PAIRS = [
    ("The sky is", " blue"),
    ("The sky is ", "blue"),  # the space belongs to the continuation
    ("The sky is", " green"),
    ("", "Hello"),
    ("x" * 200, " end"),  # cut from the left
    ("ab", "c"),
]


def test_log_likelihoods_are_those_of_a_naive_forward_pass_in_the_order_of_the_requests(lm: LmxLM, naive: Any) -> None:
    found = lm.loglikelihood([instance("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    expected = [
        naive(with_bos("The sky is"), BYTES.encode(" blue")),
        naive(with_bos("The sky is"), BYTES.encode(" blue")),
        naive(with_bos("The sky is"), BYTES.encode(" green")),
        naive([BYTES.bos_id], BYTES.encode("Hello")),
        naive(BYTES.encode("x" * (CONTEXT + 1 - 4)), BYTES.encode(" end")),
        naive(with_bos("ab"), BYTES.encode("c")),
    ]
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_a_greedy_continuation_is_marked(lm: LmxLM, engine: Engine) -> None:
    request = Request(prompt=with_bos("The sky"), sampling=Sampling(max_new_tokens=4, temperature=0, ignore_eos=True))
    (completion,) = engine.run([request])[0]
    text = BYTES.decode(completion.tokens)
    if BYTES.encode(text) == completion.tokens:
        assert lm.loglikelihood([instance("loglikelihood", "The sky", text)], disable_tqdm=True)[0][1]
    ((_, greedy),) = lm._loglikelihood_tokens([(("The sky", text), with_bos("The sky"), completion.tokens)], disable_tqdm=True)
    assert greedy


def test_long_texts_are_scored_in_windows_as_the_harness_cuts_them(lm: LmxLM, naive: Any) -> None:
    texts = ["short", "a longer text " * 20, ""]
    found = lm.loglikelihood_rolling([instance("loglikelihood_rolling", text) for text in texts], disable_tqdm=True)
    for text, total in zip(texts, found, strict=True):
        windows = list(get_rolling_token_windows(BYTES.encode(text), BYTES.bos_id, CONTEXT, 1))
        assert rolling_windows(BYTES.encode(text), prefix_id=BYTES.bos_id, max_length=CONTEXT) == [
            tuple(map(list, make_disjoint_window(window))) for window in windows
        ]
        assert total == pytest.approx(sum(naive(*make_disjoint_window(window))[0] for window in windows), abs=1e-2)


def test_answers_end_before_their_stop_texts_and_come_in_order(lm: LmxLM, engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=0)
    whole = [engine.run([Request(prompt=with_bos(text), sampling=sampling)])[0][0].text or "" for text in ("one", "two")]
    stop = whole[1][3:5]
    requests = [
        instance("generate_until", "one", {"until": [], "max_gen_toks": 10}),
        instance("generate_until", "two", {"until": stop, "max_gen_toks": 10, "do_sample": False, "temperature": 0.7}),
        instance("generate_until", "y" * 300, {"until": ["\n\n"], "max_new_tokens": 10, "num_beams": 1}),
    ]
    found = lm.generate_until(requests, disable_tqdm=True)
    cut = engine.run(
        [Request(prompt=BYTES.encode("y" * (CONTEXT - 10)), sampling=Sampling(max_new_tokens=10, temperature=0, stop=("\n\n",)))]
    )
    assert found == [whole[0], whole[1][: whole[1].index(stop)], cut[0][0].text]


def test_repeats_of_a_sampled_request_differ(lm: LmxLM) -> None:
    request = instance("generate_until", "one", {"do_sample": True, "temperature": 1.5, "max_gen_toks": 12})
    found = lm.generate_until([request] * 3, disable_tqdm=True)
    assert len(set(found)) == 3 and lm.generate_until([request] * 3, disable_tqdm=True) == found


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"num_beams": 4}, "beam search"), ({"typical_p": 0.5}, "generation_kwargs have typical_p, which lmx does not know")],
)
def test_generation_that_lmx_has_not_is_refused(lm: LmxLM, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        lm.generate_until([instance("generate_until", "a", options)], disable_tqdm=True)


def test_a_conversation_has_the_ids_of_the_chat_format_and_its_texts_no_specials(
    lm: LmxLM, evaluated: Evaluated, naive: Any
) -> None:
    history = [{"role": "user", "content": "a</s>b"}]
    text = lm.apply_chat_template(history)
    assert text == "<s>user: a</s>b</s><s>assistant:\n"
    ids = evaluated.chat.encode(BYTES, history, add_generation_prompt=True).ids  # type: ignore[union-attr]
    assert lm.tok_encode(text) == ids and ids.count(BYTES.eos_id) == 1
    assert lm._encode_pair(text, "yes") == (ids, BYTES.encode("yes"))
    (found,) = lm.loglikelihood([instance("loglikelihood", text, "yes")], disable_tqdm=True)
    assert found[0] == pytest.approx(naive(ids, BYTES.encode("yes"))[0], abs=1e-3)
    prefilled = lm.apply_chat_template([*history, {"role": "assistant", "content": "So"}], add_generation_prompt=False)
    assert lm.tok_encode(prefilled) == ids + BYTES.encode("So")


def test_tasks_of_a_folder_are_scored_as_by_hand(lm: LmxLM, naive: Any, engine: Engine, tasks: Path, tmp_path: Path) -> None:
    results = run_harness.run_tasks(lm, ["local_choice", "local_generation"], include_path=tasks)
    right = 0
    for row in CHOICES:
        context = with_bos(f"{row['question']}\nAnswer:")
        totals = [naive(context, BYTES.encode(f" {choice}"))[0] for choice in row["choices"]]
        right += int(np.argmax(totals)) == row["answer"]
    assert results["results"]["local_choice"]["acc,none"] == pytest.approx(right / len(CHOICES))
    sampling = Sampling(max_new_tokens=12, temperature=0, stop=("Q:", "</s>"))
    exact = 0
    for row in PROBLEMS:
        ((done,),) = engine.run([Request(prompt=with_bos(f"Q: {row['question']}\nA:"), sampling=sampling)])
        lines = [line for line in (done.text or "").split("\n") if line]
        exact += bool(lines) and lines[0][0] == row["answer"][-1]
    assert results["results"]["local_generation"]["exact_match,first-character"] == pytest.approx(exact / len(PROBLEMS))
    shown = run_harness.table(results)
    assert "local_choice" in shown and "local_generation" in shown and "exact_match" in shown
    run_harness.write_results(tmp_path / "results.json", results, {"lmx": "0"})
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["results"]["local_choice"]["acc,none"] == results["results"]["local_choice"]["acc,none"]
    assert record["versions"] == {"local_choice": 1.0, "local_generation": 2.0} and set(record["lmx_versions"]) == {
        "lmx",
        "lm-eval",
    }
    assert record["config"]["lmx_fingerprint"] == "f" * 64


def test_tasks_are_asked_in_the_chat_format_with_examples_and_a_limit(lm: LmxLM, tasks: Path) -> None:
    results = run_harness.run_tasks(lm, ["local_choice"], include_path=tasks, limit=2, num_fewshot=1, apply_chat_template=True)
    assert results["n-samples"]["local_choice"] == {"original": 3, "effective": 2} and results["n-shot"]["local_choice"] == 1
    assert lm._rendered and all(text.startswith("<s>user: ") and text.endswith("<s>assistant:\n") for text in lm._rendered)
    assert all(text.count("<s>user: ") == 2 for text in lm._rendered)  # an example before each question


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": []}, "no task is named"),
        ({"tasks": ["local_choice"], "limit": 1.5}, "--limit 1.5 must be a whole number of documents, or a share"),
        ({"tasks": ["local_choice"], "limit": -1}, "--limit -1 must be"),
        ({"tasks": ["local_choice"], "num_fewshot": -1}, "--num-fewshot -1 must be at least 0"),
        ({"tasks": ["local_choice"], "include_path": Path("/no/such")}, "--include-path /no/such is not a folder"),
    ],
)
def test_bad_options_get_one_sentence(lm: LmxLM, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_harness.run_tasks(lm, **options)


def test_an_unknown_task_is_named_with_its_nearest(lm: LmxLM, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = run_harness.TaskManager

    def local_only(include_path: Any = None, include_defaults: bool = True) -> Any:  # the harness's own take 10 s to read
        return full(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(run_harness, "TaskManager", local_only)
    with pytest.raises(ValueError, match="there is no task 'local_choise'; did you mean local_choice"):
        run_harness.run_tasks(lm, ["local_choise"], include_path=tasks)


def test_a_model_without_a_chat_format_has_no_conversations(engine: Engine, evaluated: Evaluated) -> None:
    plain = LmxLM(Evaluated(model=evaluated.model, params=evaluated.params, tokenizer=BYTES, name="plain"), lambda: engine)
    assert plain.chat_template(False) is None
    with pytest.raises(ValueError, match="plain has no chat template; leave out --apply-chat-template"):
        plain.apply_chat_template([{"role": "user", "content": "a"}])
    assert plain.tokenizer_name != LmxLM(evaluated, lambda: engine).tokenizer_name
