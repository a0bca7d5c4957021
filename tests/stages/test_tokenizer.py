"""Tokenizers as a stage makes them."""

from pathlib import Path
from typing import Any

from lmx.pipeline.experiment import Experiment
from lmx.pipeline.runner import run_experiment
from lmx.stages import SentencePiece, TrainTokenizer
from lmx.tokenizer.sentencepiece import SentencePieceTraining


def test_a_sentencepiece_vocabulary_is_learned_from_the_training_split_alone(stages: dict[str, Any], tmp_path: Path) -> None:
    data = stages["tokenizer"].data
    stage = TrainTokenizer(data=data, vocabulary=SentencePiece(training=SentencePieceTraining(vocab_size=400)))
    made = run_experiment(Experiment(seed=0, stages={"tokenizer": stage}), tmp_path)["tokenizer"]
    tokenizer = made.tokenizer()
    assert made.manifest is not None and made.manifest.metrics == {"vocab_size": tokenizer.vocab_size}
    assert tokenizer.vocab_size <= 400 == stage.vocab_size({})
    for text in data.texts("heldout"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and len(ids) < len(text)
