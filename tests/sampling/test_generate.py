"""Generation against the plain full forward pass."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from lmx.kernels import head
from lmx.model.config import ScalarHead
from lmx.model.decoder import Model, build_model
from lmx.sampling import padding
from lmx.sampling.generate import Completion, Sampling, generate
from lmx.sampling.score import score

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
Fitted = tuple[Model, Any]
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0)


def full_forward_logits(model: Model, params: Any, sequences: list[list[int]]) -> np.ndarray:
    """[sequences, 32, V] logits without a cache."""
    tokens, lengths = padding.pad_rows(sequences, rows=len(sequences), length=32, pad_id=0)
    return np.asarray(jax.jit(lambda p, batch: head.logits(model.apply(p, batch)))(params, padding.right_padded(tokens, lengths)))


def texts(completions: list[Completion]) -> list[list[int]]:
    return [completion.tokens for completion in completions]


def test_greedy_generation_equals_argmax_over_the_full_forward_pass(each_family: Fitted, prompts: list[list[int]]) -> None:
    model, params = each_family
    completions = generate(model, params, prompts, sampling=Sampling(max_new_tokens=8, temperature=0.0), eos_id=-1)
    logits = full_forward_logits(model, params, [[*p, *c.tokens] for p, c in zip(prompts, completions, strict=True)])
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        # By induction over the tokens this is the loop that appends the argmax of a full forward pass.
        before = logits[row, len(prompt) - 1 : len(prompt) + 7]
        assert completion.tokens == before.argmax(axis=-1).tolist()
        assert not completion.finished
        logprobs = np.asarray(jax.nn.log_softmax(before))[range(8), completion.tokens]
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)  # the cache sums in another order


def test_logprobs_equal_teacher_forced_scoring(fitted: Fitted, prompts: list[list[int]]) -> None:
    model, params = fitted
    completions = generate(model, params, prompts, sampling=SAMPLED, eos_id=-1, seed=3)
    scores = score(model, params, [prompt + c.tokens for prompt, c in zip(prompts, completions, strict=True)])
    for prompt, completion, logprobs in zip(prompts, completions, scores, strict=True):
        assert completion.logprobs.dtype == np.float32
        np.testing.assert_allclose(completion.logprobs, logprobs[len(prompt) - 1 :], atol=1e-4)


def test_logprobs_are_those_at_the_sampling_temperature(fitted: Fitted) -> None:
    model, params = fitted
    (completion,) = generate(model, params, [[7, 9]], sampling=Sampling(max_new_tokens=1, temperature=0.5, top_k=2), eos_id=-1)
    logits = full_forward_logits(model, params, [[7, 9]])[0, 1]
    expected = jax.nn.log_softmax(logits / 0.5)[completion.tokens[0]]
    np.testing.assert_allclose(completion.logprobs, [expected], atol=1e-5)


def test_a_requests_tokens_do_not_depend_on_the_rest_of_the_batch(fitted: Fitted, prompts: list[list[int]]) -> None:
    model, params = fitted
    together = texts(generate(model, params, prompts, sampling=SAMPLED, eos_id=-1, seed=11))
    other = [[50 - token for token in prompt] for prompt in prompts[:2]]
    among_others = texts(generate(model, params, [*other, *prompts[::-1]], sampling=SAMPLED, eos_id=-1, seed=11))
    alone = texts(generate(model, params, prompts[2:3], sampling=SAMPLED, eos_id=-1, seed=11))
    assert among_others[:1:-1] == together
    assert alone == together[2:3]


def test_seeds_make_different_completions_of_one_prompt_and_repeat_themselves(fitted: Fitted) -> None:
    model, params = fitted
    drawn = texts(generate(model, params, [[7, 9]] * 8, sampling=SAMPLED, eos_id=-1, seed=[1, 2, 3, 1, 4, 5, 6, 7]))
    assert drawn[0] == drawn[3]
    assert len({tuple(tokens) for tokens in drawn}) == 7


def test_a_completion_ends_with_the_end_of_text_token(fitted: Fitted, prompts: list[list[int]]) -> None:
    model, params = fitted
    sampling = Sampling(max_new_tokens=8, temperature=0.0)
    free = texts(generate(model, params, prompts, sampling=sampling, eos_id=-1))
    eos_id = free[0][2]
    stopped = generate(model, params, prompts, sampling=sampling, eos_id=eos_id)
    for tokens, completion in zip(free, stopped, strict=True):
        end = tokens.index(eos_id) + 1 if eos_id in tokens else len(tokens)
        assert completion.tokens == tokens[:end]
        assert completion.finished == (eos_id in tokens)
        assert completion.logprobs.shape == (end,)


def test_ids_beyond_the_tokenizers_vocabulary_are_never_drawn(fitted: Fitted) -> None:
    model, params = fitted
    sampling = Sampling(max_new_tokens=8, temperature=5.0, vocab_size=10)
    drawn = texts(generate(model, params, [[1], [2], [3], [4]], sampling=sampling, eos_id=-1))
    assert max(max(tokens) for tokens in drawn) < 10


def test_prompts_are_processed_in_batches_without_changing_their_completions(fitted: Fitted) -> None:
    model, params = fitted
    prompts = [[token] for token in range(1, 9)]
    few = generate(model, params, prompts, sampling=SAMPLED, eos_id=-1, batch_size=1)
    many = generate(model, params, prompts, sampling=SAMPLED, eos_id=-1, batch_size=64)
    assert texts(few) == texts(many)


def test_a_second_call_of_the_same_shape_compiles_nothing(fitted: Fitted) -> None:
    model, params = fitted
    compiled: list[str] = []
    listener = lambda event, *_, **__: compiled.append(event) if event == COMPILE_EVENT else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    sampling = Sampling(max_new_tokens=3, temperature=1.0)
    generate(model, params, [[1, 2]], sampling=sampling, eos_id=-1)
    first = len(compiled)
    generate(model, params, [[3, 4, 5]], sampling=sampling, eos_id=-1, seed=9)
    assert first > 0
    assert len(compiled) == first


def test_no_prompts_give_no_completions(fitted: Fitted) -> None:
    model, params = fitted
    assert generate(model, params, [], sampling=Sampling(max_new_tokens=4), eos_id=-1) == []


def test_bad_requests_get_one_clear_sentence(fitted: Fitted) -> None:
    model, params = fitted
    sampling = Sampling(max_new_tokens=8)
    with pytest.raises(ValueError, match="prompt 1 has 60 tokens; with max_new_tokens=8 it exceeds the model's max_length=64"):
        generate(model, params, [[1], [2] * 60], sampling=sampling, eos_id=-1)
    with pytest.raises(ValueError, match="prompt 0 holds token id 64, but the model's vocabulary is 0..63"):
        generate(model, params, [[1, 64]], sampling=sampling, eos_id=-1)
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, params, [[1], []], sampling=sampling, eos_id=-1)
    with pytest.raises(ValueError, match="3 seeds for 1 prompts"):
        generate(model, params, [[1]], sampling=sampling, eos_id=-1, seed=[1, 2, 3])
    with pytest.raises(ValueError, match="top_p=0 must lie in"):
        Sampling(max_new_tokens=8, top_p=0)
    reward_model = build_model(dataclasses.replace(model.config, head=ScalarHead()))
    with pytest.raises(ValueError, match="scalar head"):
        generate(reward_model, params, [[1]], sampling=sampling, eos_id=-1)
