"""The engine against the plain full forward pass, and what a caller may rely on."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

from configs.models import tiny
from lmx.kernels import head
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model, build_model
from lmx.sampling import padding
from lmx.sampling.engine import Engine, EngineConfig
from lmx.sampling.request import Completion, Event, Request, Sampling
from lmx.tokenizer.bytes import ByteTokenizer

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
Fitted = tuple[Model, Any]
GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0)
SIZES = EngineConfig(slots=3, max_length=64, prefill_chunk=16, decode_steps=4)


def engine_of(fitted: Fitted, **options: Any) -> Engine:
    return Engine(*fitted, config=dataclasses.replace(SIZES, **options), eos_ids=[])


def all_logits(fitted: Fitted, sequences: list[list[int]]) -> np.ndarray:
    """[sequences, 64, V] logits without a cache."""
    model, params = fitted
    tokens, lengths = padding.pad_rows(sequences, rows=len(sequences), length=64, pad_id=0)
    return np.asarray(jax.jit(lambda p, batch: head.logits(model.apply(p, batch)))(params, padding.right_padded(tokens, lengths)))


def firsts(completions: list[list[Completion]]) -> list[list[int]]:
    return [samples[0].tokens for samples in completions]


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the compilations inside."""
    found: list[str] = []
    listener = lambda event, *_, **__: found.append(event) if event == COMPILE_EVENT else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield found
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.fixture
def ragged() -> list[list[int]]:
    """Prompts of 1 to 40 tokens, more than there are slots; some need several chunks, and are longer than Gemma's window."""
    random = np.random.default_rng(0)
    return [random.integers(2, 60, length).tolist() for length in (1, 3, 40, 5, 17, 2, 33, 16)]


def test_greedy_tokens_equal_the_argmax_of_the_full_forward_pass(each_family: Fitted, ragged: list[list[int]]) -> None:
    completions = engine_of(each_family).run([Request(prompt=prompt, sampling=GREEDY) for prompt in ragged])
    logits = all_logits(each_family, [prompt + c[0].tokens for prompt, c in zip(ragged, completions, strict=True)])
    for row, (prompt, (completion,)) in enumerate(zip(ragged, completions, strict=True)):
        before = logits[row, len(prompt) - 1 : len(prompt) + 7]  # by induction this is the loop that appends the argmax
        assert completion.tokens == before.argmax(axis=-1).tolist()
        expected = np.asarray(jax.nn.log_softmax(before))[range(8), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
        assert completion.finish_reason == "length" and completion.text is None and completion.top_logprobs is None


def test_a_requests_tokens_do_not_depend_on_its_company_or_slot(fitted: Fitted, ragged: list[list[int]]) -> None:
    kinds = [
        SAMPLED,
        dataclasses.replace(SAMPLED, top_k=5, temperature=0.7),
        dataclasses.replace(SAMPLED, top_p=0.8, repetition_penalty=1.3),
        dataclasses.replace(SAMPLED, min_p=0.1, top_logprobs=3),
        GREEDY,
    ]
    requests = [Request(prompt=p, sampling=kinds[i % len(kinds)], seed=i, n=1 + i % 2) for i, p in enumerate(ragged)]
    engine = engine_of(fitted)
    together = engine.run(requests)
    backwards = engine.run(requests[::-1])[::-1]
    alone = [engine.run([request])[0] for request in requests[:4]]
    other = engine_of(fitted, slots=5, decode_steps=3, prefill_chunk=64).run(requests)
    for found in (backwards, other, alone):
        for one, two in zip(together, found, strict=False):
            assert [c.tokens for c in one] == [c.tokens for c in two]


def test_samples_share_a_prompt_and_differ_by_their_number(fitted: Fitted) -> None:
    request = Request(prompt=list(range(2, 25)), sampling=SAMPLED, seed=7, n=7)
    few, many = engine_of(fitted), engine_of(fitted, slots=8)
    (queued,), (at_once,) = few.run([request]), many.run([request])
    assert [c.tokens for c in queued] == [c.tokens for c in at_once]
    assert len({tuple(c.tokens) for c in at_once}) == 7
    (fewer,) = many.run([dataclasses.replace(request, n=2)])
    assert [c.tokens for c in fewer] == [c.tokens for c in at_once[:2]]


def test_events_together_are_the_completion(fitted: Fitted, ragged: list[list[int]]) -> None:
    engine = engine_of(fitted)
    sampling = dataclasses.replace(SAMPLED, top_logprobs=2)
    ids = [engine.submit(Request(prompt=prompt, sampling=sampling, seed=4)) for prompt in ragged]
    assert engine.queued == len(ragged) and engine.active == 0
    events = drain(engine)
    for request_id in ids:
        own = [event for event in events if event.request_id == request_id]
        assert [event.completion is None for event in own] == [True] * (len(own) - 1) + [False]
        completion = own[-1].completion
        assert completion is not None
        assert [token for event in own for token in event.tokens] == completion.tokens
        np.testing.assert_array_equal(np.concatenate([event.logprobs for event in own]), completion.logprobs)
        assert [top for event in own for top in event.top_logprobs or []] == completion.top_logprobs
        for token, logprob, top in zip(completion.tokens, completion.logprobs, completion.top_logprobs or [], strict=True):
            assert (
                len(top) == 2
                and top[0][1] >= top[1][1]
                and dict(top).get(token, logprob) == pytest.approx(float(logprob), abs=1e-5)
            )
    assert engine.step() == [] and not engine.busy and engine.active == 0


def test_a_freed_slot_is_filled_while_the_others_go_on(fitted: Fitted) -> None:
    engine = engine_of(fitted, slots=2)
    lengths = [40, 3, 3, 3, 3, 3, 3]
    for length in lengths:
        engine.submit(Request(prompt=[5, 6], sampling=dataclasses.replace(GREEDY, max_new_tokens=length)))
    ended = [event.request_id for event in drain(engine) if event.completion is not None]
    assert ended == [1, 2, 3, 4, 5, 6, 0]


def test_eos_ids_and_stop_ids_end_a_completion(fitted: Fitted) -> None:
    prompt = [7, 9, 11]
    free = engine_of(fitted).run([Request(prompt=prompt, sampling=GREEDY)])[0][0].tokens
    ends = sorted(set(free[2:5]))
    engine = Engine(*fitted, config=SIZES, eos_ids=ends)
    stop = dataclasses.replace(GREEDY, ignore_eos=True)
    kinds = [
        GREEDY,
        stop,
        dataclasses.replace(stop, stop_ids=(free[1],)),
        dataclasses.replace(stop, stop_ids=(*range(50, 62), free[3])),
    ]
    by_eos, ignored, by_id, by_many = (c[0] for c in engine.run([Request(prompt=prompt, sampling=kind) for kind in kinds]))
    end = min(free.index(token) for token in ends)
    assert by_eos.tokens == free[: end + 1] and by_eos.finished
    assert ignored.tokens == free and ignored.finish_reason == "length"
    assert by_id.tokens == free[: free.index(free[1]) + 1] and by_id.finish_reason == "stop"
    listed = {*range(50, 62), free[3]}
    assert by_many.tokens == free[: next(i for i, token in enumerate(free) if token in listed) + 1]


def test_stop_texts_end_the_text_across_tokens() -> None:
    tokenizer = ByteTokenizer()
    model = build_model(tiny.qwen2(tokenizer.vocab_size, model_dim=32, num_layers=1, q_heads=2, kv_heads=1, max_length=64))
    params = model.init(jax.random.key(0))
    engine = Engine(model, params, config=SIZES, eos_ids=[tokenizer.eos_id], tokenizer=tokenizer)
    sampling = Sampling(max_new_tokens=30, temperature=1.0, ignore_eos=True, top_k=40)
    request = Request(prompt=tokenizer.encode("hello"), sampling=sampling, seed=2)
    (free,) = engine.run([request])[0]
    assert free.text == tokenizer.decode(free.tokens) and free.text
    stop = free.text[9:12]
    engine.submit(dataclasses.replace(request, sampling=dataclasses.replace(sampling, stop=("never there", stop))))
    events = drain(engine)
    completion = events[-1].completion
    assert completion is not None and completion.finish_reason == "stop"
    assert completion.text == free.text[: free.text.index(stop)]
    assert "".join(event.text for event in events) == completion.text
    assert completion.tokens == free.tokens[: len(completion.tokens)] and len(completion.tokens) < len(free.tokens)
    assert stop in tokenizer.decode(completion.tokens)
    (again,) = engine.run([request])[0]  # the slot that the host ended serves the next request
    assert again.tokens == free.tokens


def test_cancelling_frees_what_a_request_holds(fitted: Fitted, ragged: list[list[int]]) -> None:
    engine = engine_of(fitted, slots=2)
    long = dataclasses.replace(SAMPLED, max_new_tokens=20)
    running = engine.submit(Request(prompt=ragged[1], sampling=long, n=2))
    waiting = engine.submit(Request(prompt=ragged[3], sampling=long, n=2))
    kept = engine.submit(Request(prompt=ragged[5], sampling=long, seed=3))
    first = engine.step()
    assert {event.request_id for event in first} == {running} and engine.active == 2
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(12345)  # long gone, or never there
    assert engine.active == 0 and engine.queued == 1
    events = drain(engine)
    cancelled = [event for event in events if event.completion is not None and event.completion.finish_reason == "cancelled"]
    assert sorted((event.request_id, event.sample) for event in cancelled) == [
        (running, 0),
        (running, 1),
        (waiting, 0),
        (waiting, 1),
    ]
    drawn = {event.sample: event.tokens for event in first}
    for event in cancelled:
        assert event.completion is not None
        assert event.completion.tokens == (drawn[event.sample] if event.request_id == running else [])
    (expected,) = engine_of(fitted).run([Request(prompt=ragged[5], sampling=long, seed=3)])[0]
    assert [event.completion.tokens for event in events if event.request_id == kept and event.completion] == [expected.tokens]


def test_the_repetition_penalty_counts_prompt_and_drawn_tokens(fitted: Fitted) -> None:
    prompt, penalty = [7, 9, 11, 9], 1.8
    sampling = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    engine = engine_of(fitted)
    engine.run([Request(prompt=list(range(40)), sampling=sampling)] * 3)  # what it marked must not be left in the slots
    (completion,) = engine.run([Request(prompt=prompt, sampling=sampling)])[0]
    logits = all_logits(fitted, [prompt + completion.tokens])[0]
    sequence = list(prompt)
    for token in completion.tokens:
        row = logits[len(sequence) - 1].copy()
        seen = sorted(set(sequence))
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        assert token == row.argmax()
        sequence.append(token)


def test_nothing_is_compiled_after_warm_up(fitted: Fitted, ragged: list[list[int]]) -> None:
    model, params = fitted
    config = dataclasses.replace(SIZES, max_length=62)  # a size of its own, for which other tests have compiled nothing
    with compilations() as first:
        engine = Engine(model, params, config=config, eos_ids=[1])
        engine.warm_up(longest_prompt=40)
    kinds = [SAMPLED, GREEDY, dataclasses.replace(SAMPLED, top_p=0.5, repetition_penalty=2.0, top_logprobs=4, top_k=3)]
    with compilations() as later:
        engine.run([Request(prompt=p, sampling=kinds[i % 3], n=1 + i % 4, seed=i) for i, p in enumerate(ragged)])
        engine.update_params(jax.tree.map(np.asarray, params))
        engine.run([Request(prompt=p, sampling=kinds[i % 2]) for i, p in enumerate(ragged[:3])])
        Engine(model, params, config=config, eos_ids=[2]).run([Request(prompt=ragged[1], sampling=SAMPLED)])
    assert first and not later


def test_new_parameters_take_effect_at_the_next_step(fitted: Fitted) -> None:
    model, params = fitted
    changed = jax.tree.map(lambda leaf: leaf * 0.9, params)
    engine, requests = engine_of(fitted), [Request(prompt=[3, 4, 5], sampling=GREEDY)]
    before = engine.run(requests)
    engine.update_params(changed)
    after = engine.run(requests)
    expected = engine_of((model, changed)).run(requests)
    np.testing.assert_array_equal(after[0][0].logprobs, expected[0][0].logprobs)
    assert not np.array_equal(before[0][0].logprobs, after[0][0].logprobs)
    with pytest.raises(ValueError, match="model's structure"):
        engine.update_params({"embed": params["embed"]})
    with pytest.raises(ValueError, match="parameter embed/table has shape"):
        engine.update_params(params | {"embed": {"table": params["embed"]["table"][:10]}})


@pytest.mark.parametrize("family", ["gemma2", "llama3"])
def test_an_int8_cache_changes_little(family: str, ragged: list[list[int]], build_family: Any) -> None:
    fitted = build_family(family)
    sampling = dataclasses.replace(SAMPLED, max_new_tokens=1, temperature=1.0)
    exact = engine_of(fitted).run([Request(prompt=p, sampling=sampling, seed=i) for i, p in enumerate(ragged)])
    eight = engine_of(fitted, kv_dtype="int8").run([Request(prompt=p, sampling=sampling, seed=i) for i, p in enumerate(ragged)])
    same = [(a, b) for (a,), (b,) in zip(exact, eight, strict=True) if a.tokens == b.tokens]
    assert len(same) >= len(ragged) - 1
    for a, b in same:
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=0.2)
    greedy = [engine_of(fitted, kv_dtype=kind).run([Request(prompt=p, sampling=GREEDY) for p in ragged]) for kind in (None, "int8")]
    agreeing = [a == b for one, two in zip(*map(firsts, greedy), strict=True) for a, b in zip(one, two, strict=True)]
    assert np.mean(agreeing) > 0.8


def test_ids_from_the_vocabulary_size_on_are_never_drawn(fitted: Fitted) -> None:
    engine = Engine(*fitted, config=SIZES, eos_ids=[], vocab_size=20)
    hot = dataclasses.replace(SAMPLED, temperature=50.0, max_new_tokens=30)
    completions = engine.run(
        [Request(prompt=[3], sampling=hot, n=3), Request(prompt=[3], sampling=dataclasses.replace(hot, vocab_size=5))]
    )
    assert 5 < max(token for c in completions[0] for token in c.tokens) < 20
    assert max(completions[1][0].tokens) < 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"temperature": -0.1}, "temperature=-0.1 must be a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"temperature": float("inf")}, "temperature=inf must be"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must lie in"),
        ({"top_p": 1.1}, "top_p=1.1 must lie in"),
        ({"min_p": 1.0}, "min_p=1.0 must lie in"),
        ({"min_p": -0.5}, "min_p=-0.5 must lie in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan must be"),
        ({"stop": ("",)}, "texts that are not empty"),
        ({"stop": "abc"}, "must be a tuple of texts"),
        ({"stop_ids": (-1,)}, "must be token ids"),
        ({"top_logprobs": 21}, "top_logprobs=21 must lie in 0..20"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
    ],
)
def test_absurd_sampling_parameters_get_one_clear_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**{"max_new_tokens": 4, **given})


def test_bad_requests_are_refused_before_anything_is_queued(fitted: Fitted) -> None:
    model, params = fitted
    engine = Engine(model, params, config=SIZES, eos_ids=[], vocab_size=60)
    bad = [
        (Request(prompt=[], sampling=GREEDY), "prompt 0 is empty"),
        (Request(prompt=[1, 60], sampling=GREEDY), "prompt 0 holds token id 60"),
        (
            Request(prompt=[1] * 57, sampling=GREEDY),
            "the prompt has 57 tokens; with max_new_tokens=8 it exceeds the engine's max_length=64",
        ),
        (Request(prompt=[1], sampling=dataclasses.replace(GREEDY, stop=("x",))), "needs an engine with a tokenizer"),
        (Request(prompt=[1], sampling=dataclasses.replace(GREEDY, vocab_size=61)), "vocab_size=61 exceeds the engine's 60"),
    ]
    for request, message in bad:
        with pytest.raises(ValueError, match=message):
            engine.run([Request(prompt=[1], sampling=GREEDY), request])
        assert not engine.busy
    with pytest.raises(ValueError, match="n=0 samples"):
        Request(prompt=[1], sampling=GREEDY, n=0)
    with pytest.raises(ValueError, match="seed=-1 must lie in"):
        Request(prompt=[1], sampling=GREEDY, seed=-1)
    engine.submit(Request(prompt=[1], sampling=GREEDY))
    with pytest.raises(RuntimeError, match="other requests under way"):
        engine.run([])


def test_engines_that_cannot_be_get_one_clear_sentence(fitted: Fitted) -> None:
    model, params = fitted
    with pytest.raises(ValueError, match="slots=0 of the engine must be at least 1"):
        EngineConfig(slots=0, max_length=8)
    with pytest.raises(ValueError, match="max_length=65 exceeds the model's max_length=64"):
        engine_of(fitted, max_length=65)
    with pytest.raises(ValueError, match="vocab_size=65 must lie in 1..64"):
        Engine(model, params, config=SIZES, eos_ids=[], vocab_size=65)
    with pytest.raises(ValueError, match="kv_dtype='int4' is not one of"):
        engine_of(fitted, kv_dtype="int4")
    reward = build_model(dataclasses.replace(model.config, head=ScalarHead()))
    with pytest.raises(ValueError, match="scalar head"):
        Engine(reward, params, config=SIZES, eos_ids=[])
