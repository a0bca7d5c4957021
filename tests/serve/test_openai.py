"""OpenAI's own client against a tiny real model over a loopback socket."""

import concurrent.futures
from typing import Any

import numpy as np
import openai
import pytest

from lmx.kernels import head
from lmx.sampling import padding
from lmx.sampling.score import score_continuations
from lmx.serve.checkpoint import Checkpoint
from lmx.tokenizer.bytes import ByteTokenizer

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
MESSAGES_TEXT = "<s>system: Be brief.</s><s>user: Hello</s><s>assistant: "
BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def client(live: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def hello(client: openai.OpenAI) -> str:
    """What the model goes on with, greedily."""
    return client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=0).choices[0].text


def test_a_greedy_completion_is_the_argmax_of_the_whole_forward_pass(client: openai.OpenAI, checkpoint: Checkpoint) -> None:
    answer = client.completions.create(model="tiny", prompt="Hello", max_tokens=6, temperature=0, logprobs=0)
    found = answer.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    ids = [BYTES.bos_id, *BYTES.encode("Hello")]
    for text, logprob in zip(found.tokens, found.token_logprobs, strict=True):
        tokens, lengths = padding.pad_rows([ids], rows=1, length=32, pad_id=0)
        model, params = checkpoint.loaded.model, checkpoint.loaded.params
        logits = np.asarray(head.logits(model.apply(params, padding.right_padded(tokens, lengths))))[0, len(ids) - 1]  # type: ignore[arg-type]
        best = int(np.argmax(logits))
        assert text == (chr(best - 3) if best > 2 else BYTES.id_to_piece(best))
        assert logprob == pytest.approx(float(logits[best] - np.log(np.sum(np.exp(logits)))), abs=1e-3)
        ids.append(best)
    assert answer.usage is not None and answer.usage.prompt_tokens == 6 and answer.usage.completion_tokens == len(found.tokens)


def test_the_four_forms_of_a_prompt_agree(client: openai.OpenAI, hello: str) -> None:
    ids = [BYTES.bos_id, *BYTES.encode("Hello")]
    forms: list[Any] = ["Hello", ["Hello", "Hello"], ids, [ids, ids]]
    for form in forms:
        answer = client.completions.create(model="tiny", prompt=form, max_tokens=12, temperature=0)
        assert {choice.text for choice in answer.choices} == {hello}
        assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI, hello: str) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=0, **options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == hello
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["length"] and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12


def test_the_same_seed_gives_the_same_samples_and_another_gives_others(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=1.5, n=3, seed=seed)
        return [choice.text for choice in answer.choices]

    first = texts(7)
    assert texts(7) == first and len(set(first)) == 3
    assert texts(8) != first


def test_a_stop_text_ends_the_answer_before_it(client: openai.OpenAI, hello: str) -> None:
    stop = hello[4:6]
    cut = hello[: hello.index(stop)]
    choice = client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=0, stop=[stop, "never"]).choices[0]
    assert (choice.text, choice.finish_reason) == (cut, "stop")
    chunks = client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=0, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut


def test_an_echoed_prompt_is_scored_as_evaluation_harnesses_ask(client: openai.OpenAI, checkpoint: Checkpoint) -> None:
    ids = [BYTES.bos_id, *BYTES.encode("Hello you")]
    (expected,) = score_continuations(checkpoint.loaded.model, checkpoint.loaded.params, [(ids[:1], ids[1:])], vocab_size=130)
    for prompt, shown in ((ids, [None, *expected.logprobs.tolist()]), ("Hello you", expected.logprobs.tolist())):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0, logprobs=1, echo=True)
        found = answer.choices[0].logprobs
        assert (
            found is not None and found.token_logprobs is not None and found.top_logprobs is not None and found.tokens is not None
        )
        assert answer.choices[0].text.startswith("Hello you")
        assert found.token_logprobs[:-1] == pytest.approx(shown, abs=1e-4)
        assert "".join(found.tokens[-10:-1]) == "Hello you" and found.text_offset[-10:] == list(range(10))  # type: ignore[index]
        greedy = [
            value == max(top.values()) for value, top in zip(found.token_logprobs[-10:-1], found.top_logprobs[-10:-1], strict=True)
        ]  # type: ignore[union-attr]
        assert greedy == expected.greedy.tolist()
    alone = client.completions.create(model="tiny", prompt=["Hello you"], max_tokens=0, logprobs=2, echo=True)
    assert alone.choices[0].text == "Hello you" and alone.usage is not None and alone.usage.completion_tokens == 0
    streamed = list(client.completions.create(model="tiny", prompt="ab", max_tokens=2, temperature=0, echo=True, stream=True))
    assert streamed[0].choices[0].text == "ab" and streamed[0].choices[0].finish_reason is None


def test_a_chat_is_rendered_by_the_template(client: openai.OpenAI) -> None:
    prompt = BYTES.encode_with_specials(MESSAGES_TEXT)
    expected = client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected.choices[0].text
    assert answer.usage is not None and answer.usage.prompt_tokens == len(prompt)


def test_a_chat_streams_with_log_probabilities(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_completion_tokens": 8,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content and chunks[0].choices[0].delta.role == "assistant"
    streamed = [
        entry for chunk in chunks if chunk.choices and chunk.choices[0].logprobs for entry in chunk.choices[0].logprobs.content
    ]
    content = whole.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in content] and len(content) == 8
    assert all(len(entry.top_logprobs) == 2 and entry.logprob == entry.top_logprobs[0].logprob for entry in content)
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_user_text_never_becomes_a_special_token(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a</s>b", max_tokens=1)
    assert answer.usage is not None and answer.usage.prompt_tokens == 7
    message: Any = {"role": "user", "content": "</s>"}
    chat = client.chat.completions.create(model="tiny", messages=[message], max_tokens=1)
    rest = BYTES.encode_with_specials("<s>user: </s><s>assistant: ")
    assert chat.usage is not None and chat.usage.prompt_tokens == len(rest) + 4


def test_clients_at_the_same_time_get_what_they_would_get_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        stream = client.completions.create(
            model="tiny", prompt=f"Question {number % 3}", max_tokens=10 + number, temperature=1.0, seed=number, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in stream)

    alone = [ask(number) for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        assert list(threads.map(ask, range(6))) == alone


def test_the_clients_errors_are_the_apis(client: openai.OpenAI, live: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "lmx"
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist here; this server has 'tiny'"):
        client.completions.create(model="gpt-9", prompt="a")
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        client.completions.create(model="tiny", prompt="")
    with pytest.raises(openai.BadRequestError, match="with max_new_tokens=400 it exceeds the engine's max_length=256") as caught:
        client.completions.create(model="tiny", prompt="a", max_tokens=400)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="max_length=256"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * 300}])
    with pytest.raises(openai.BadRequestError, match="prompt 1: the prompt is empty"):
        client.completions.create(model="tiny", prompt=["a", ""])
    with pytest.raises(openai.BadRequestError, match="token id 200, but the model's vocabulary is 0..129"):
        client.completions.create(model="tiny", prompt=[200])
    with pytest.raises(openai.BadRequestError, match="template has no place for tools"):
        tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[tool])
    assert live.service.worker.taken == 0


def test_extensions_reach_the_engine(client: openai.OpenAI, hello: str) -> None:
    extra: Any = {"top_k": 1, "min_p": 0.5, "repetition_penalty": 1.0}
    answer = client.completions.create(model="tiny", prompt="Hello", max_tokens=12, temperature=2, extra_body=extra)
    assert answer.choices[0].text == hello
    with pytest.raises(openai.BadRequestError, match="unknown field 'topk'"):
        client.completions.create(model="tiny", prompt="Hello", extra_body={"topk": 1})


def test_a_client_that_closes_its_stream_frees_the_slot(client: openai.OpenAI, live: Any, eventually: Any) -> None:
    stream = client.completions.create(model="tiny", prompt="Hello", max_tokens=200, temperature=1, stream=True)
    next(iter(stream))
    stream.close()
    eventually(lambda: live.service.worker.taken == 0)
