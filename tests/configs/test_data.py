"""The data configs build what they promise, without reading anything large."""

import pytest

from configs.data import python_corpus, tasks
from lmx.core.fingerprint import fingerprint
from lmx.tokenizer.bytes import ByteTokenizer


def test_text_configs_have_fingerprints_and_both_kinds() -> None:
    configs = [python_corpus.mixture(), python_corpus.prose(), python_corpus.evaluation(100_000)]
    assert len({fingerprint(config) for config in configs}) == 3
    assert [part.weight for part in python_corpus.mixture(prose=0.7, code=0.3).components] == [0.7, 0.3]


@pytest.mark.parametrize("difficulty", [tasks.easy, tasks.medium, tasks.hard])
def test_instructions_and_preferences_of_each_difficulty_make_batches(difficulty: object) -> None:
    assert callable(difficulty)
    order = {"batch_size": 2, "length": 128, "seed": 0, "epochs": 1}
    instructions = tasks.instructions(difficulty(), count=40).loader(ByteTokenizer(), **order)
    preferences = tasks.preferences(difficulty(), count=40).loader(ByteTokenizer(), **order)
    assert next(instructions).loss_mask.any() and next(preferences).rejected.loss_mask.any()
    assert preferences.num_batches == 20
