"""The needle test, judged on models that are known to find facts or not to: copiers of what followed the same n tokens before."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.core.types import Outputs
from lmx.data.recall import Facts
from lmx.eval.needle import NeedleTest, exact_matches, find_needles
from lmx.model.decoder import Model, build_model
from lmx.sampling.generate import Sampling, generate
from lmx.tokenizer.bytes import ByteTokenizer

VOCAB = 264
TEST = NeedleTest(samples=6, depths=(0.0, 0.5, 1.0), batch_size=4)


def copier(order: int) -> Model:
    """Predicts the token after the last earlier place where the same `order` tokens stood."""

    def apply(params: Any, batch: Any) -> Outputs:
        tokens = jnp.asarray(batch.tokens)
        shifted = [jnp.pad(tokens, ((0, 0), (k, 0)), constant_values=-1)[:, : tokens.shape[1]] for k in range(order)]
        same = jnp.all(jnp.stack([s[:, :, None] == s[:, None, :] for s in shifted]), axis=0)  # [B, t, s]
        places = jnp.arange(tokens.shape[1])
        last = jnp.max(jnp.where(same & (places[None, :] < places[:, None]), places, -1), axis=-1)
        copied = jnp.take_along_axis(tokens, jnp.minimum(last + 1, tokens.shape[1] - 1), axis=1)
        return Outputs(jax.nn.one_hot(jnp.where(last < 0, 0, copied), VOCAB), jnp.eye(VOCAB))

    return Model(None, None, None, apply, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_texts_fill_the_context_and_ask_for_a_fact_at_its_depth(depth: float) -> None:
    tokenizer = ByteTokenizer()
    for row in TEST.rows(tokenizer, length=300, depth=depth):
        assert row.tokens.shape == (300,) and row.loss_mask[-1] and row.loss_mask.sum() == len(" 1234.")
        text, answer = tokenizer.decode(list(row.tokens)), tokenizer.decode(list(row.labels[row.loss_mask]))
        question = text[text.rindex("\n") + 1 :][: -len(answer) + 1]
        place = text.index(question + answer)
        room = 300 - 2 * len(question + answer) - 3
        assert abs(place - round(depth * room)) <= 2 and text.count(answer) == 1


def test_who_copies_the_whole_fact_finds_it_and_who_copies_from_short_contexts_takes_the_wrong_one() -> None:
    distracted = NeedleTest(samples=6, depths=(0.0, 0.5), distractors=5, batch_size=4)
    whole = find_needles(distracted, copier(12), {}, ByteTokenizer(), length=500)
    assert whole.accuracy == 1.0 and whole.hits == {0.0: 6, 0.5: 6} and whole.length == 500
    assert find_needles(distracted, copier(3), {}, ByteTokenizer(), length=500).accuracy < 0.5
    assert find_needles(TEST, copier(3), {}, ByteTokenizer(), length=200).accuracy == 1.0


def test_teacher_forcing_says_what_greedy_decoding_would_write() -> None:
    model = build_model(
        tiny.qwen2(VOCAB, model_dim=16, num_layers=1, q_heads=2, kv_heads=1, head_dim=8, ffn_dim=16, max_length=128)
    )
    params, tokenizer = model.init(jax.random.key(0)), ByteTokenizer()
    (row, *_) = TEST.rows(tokenizer, length=80, depth=0.5)
    prompt = [int(token) for token in row.tokens[: 80 - row.loss_mask.sum() + 1]]
    (greedy,) = generate(
        model,
        params,
        [prompt],
        sampling=Sampling(max_new_tokens=6, temperature=0.0),
        eos_id=VOCAB - 1,
        pad_id=0,
        seed=0,
        batch_size=1,
    )
    written = np.array(prompt + list(greedy.tokens), np.int32)
    right = type(row)(written[:-1], written[1:], row.loss_mask, row.segment_ids, row.positions)
    wrong_labels = np.where(np.arange(80) == 79, (written[1:] + 1) % 200, written[1:])
    wrong = type(row)(written[:-1], wrong_labels, row.loss_mask, row.segment_ids, row.positions)
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), right, wrong)
    assert exact_matches(model, params, batch).tolist() == [True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeedleTest(depths=()), r"depths=\(\) must be shares"),
        (lambda: NeedleTest(depths=(1.5,)), r"depths=\(1.5,\) must be shares"),
        (lambda: NeedleTest(samples=0), "samples=0"),
        (
            lambda: TEST.rows(ByteTokenizer(), length=40, depth=0.5),
            "length=40 has no room for 1 facts, the question and the answer",
        ),
        (
            lambda: NeedleTest(facts=Facts(keys=("a",)), distractors=1).rows(ByteTokenizer(), length=400, depth=0),
            "2 facts in one text",
        ),
    ],
)
def test_impossible_tests_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
