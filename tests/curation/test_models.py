"""A reward model as a scorer, a language model as a teacher: small random ones, from artifacts."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.models import tiny
from lmx.core import storage
from lmx.curation.pipelines.score import Score
from lmx.curation.pipelines.write_questions import WriteQuestions
from lmx.curation.scorers import ModelScorer
from lmx.curation.writers import ModelWriter
from lmx.data.batches import LMBatch
from lmx.model.config import ScalarHead
from lmx.model.decoder import build_model
from lmx.objectives.sequence import sequence_rewards
from lmx.pipeline import artifact
from lmx.tokenizer.bytes import ByteTokenizer
from tests.fixtures import manifests

TOKENIZER = ByteTokenizer()
TEXTS = ["short", "a text that is somewhat longer than the others are", "x" * 300, ""]


def saved(folder, *, scalar):
    """A model with random parameters as a finished artifact."""
    config = tiny.qwen2(
        TOKENIZER.vocab_size, model_dim=32, num_layers=1, q_heads=2, kv_heads=1, head_dim=16, ffn_dim=32, max_length=128
    )
    if scalar:
        config = dataclasses.replace(config, head=ScalarHead())
    model = build_model(config)
    params = model.init(jax.random.key(0))
    path = storage.as_path(folder)
    artifact.write_model(path, config=config, params=params, tokenizer=TOKENIZER)
    artifact.write_manifest(path, manifests.finished())
    return model, params


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    return str(folder), *saved(folder, scalar=True)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    saved(folder, scalar=False)
    return str(folder)


def test_scores_are_the_rewards_of_the_whole_text_and_independent_of_the_batch(reward_model):
    path, model, params = reward_model
    scores = ModelScorer(path=path, max_tokens=64, batch=3).open()
    found = scores(TEXTS)
    assert [scores([text])[0] for text in TEXTS] == found  # to the last bit
    assert scores(TEXTS[::-1])[::-1] == found
    bos = [] if TOKENIZER.bos_id is None else [TOKENIZER.bos_id]
    for text, score in list(zip(TEXTS, found, strict=True))[1:3]:
        ids = np.array([[*[*bos, *TOKENIZER.encode(text)][:63], TOKENIZER.eos_id]], np.int32)
        before_last = np.arange(ids.shape[1])[None] < ids.shape[1] - 1
        batch = LMBatch(ids, ids, before_last, np.ones_like(ids), np.arange(ids.shape[1], dtype=np.int32)[None])
        expected = sequence_rewards(jax.jit(model.apply)(params, batch), batch)
        assert score == pytest.approx(float(expected[0]), abs=1e-5)


def test_the_scorer_is_a_step(reward_model, run_step, make_document):
    pages = [make_document(text) for text in TEXTS[:3]]
    result = run_step(Score(scorer=ModelScorer(path=reward_model[0], max_tokens=64, batch=2), batch=2), pages)
    expected = ModelScorer(path=reward_model[0], max_tokens=64, batch=2).open()(TEXTS[:3])
    assert {item.text: item.meta["quality"] for item in result.documents.values()} == {
        text: round(score, 4) for text, score in zip(TEXTS, expected, strict=False)
    }


def test_the_teacher_writes_through_the_engine_the_same_text_for_the_same_seed(language_model, run_step, make_document):
    write = ModelWriter(path=language_model, max_new_tokens=8, temperature=1.0, batch=2).open()
    prompts = ["one prompt", "another " * 100]  # the second is longer than the model
    first = write(prompts, [1, 2])
    assert len(first) == 2 and write(prompts[::-1], [2, 3])[0] == first[1]
    pages = [make_document(f"page {n} " * 10) for n in range(2)]
    writer = ModelWriter(path=language_model, max_new_tokens=8, batch=2)
    result = run_step(WriteQuestions(writer=writer, share=1.0, groups=1), pages)
    assert result.counts[1, "noted", "asked"] == 2 and len(result.documents) >= 2


def test_a_model_of_the_wrong_kind_or_length_is_refused(reward_model, language_model):
    with pytest.raises(ValueError, match="holds a language model; a scorer needs a scalar head"):
        ModelScorer(path=language_model).open()
    with pytest.raises(ValueError, match="max_tokens=512 is more than the max_length=128"):
        ModelScorer(path=reward_model[0]).open()
    with pytest.raises(ValueError, match="scalar head, which scores texts"):
        ModelWriter(path=reward_model[0]).open()
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        ModelWriter(path=language_model, max_new_tokens=128).open()
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        ModelWriter(path=language_model, max_new_tokens=0)
