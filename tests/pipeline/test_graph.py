"""What is wrong with an experiment is said before anything runs."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from lmx.model.activation import silu
from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, NormConfig, RopeConfig, TiedHead
from lmx.pipeline import graph
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.graph import resolve
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, Upstream, input_field


def decoder(vocab_size: int) -> DecoderConfig:
    norm = NormConfig(eps=1e-6)
    attention = AttentionConfig(q_heads=2, kv_heads=1, head_dim=4, rope=RopeConfig(theta=1e4))
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=8, activation=silu), norm=norm)
    return DecoderConfig(
        vocab_size=vocab_size, model_dim=8, num_layers=2, layer_pattern=(block,), final_norm=norm, head=TiedHead(), max_length=8
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerStage:
    produces: ClassVar[str] = "tokenizer"
    size: int

    def vocab_size(self, upstream: Upstream) -> int:
        return self.size

    def run(self, inputs: Inputs, context: StageContext) -> None:
        raise AssertionError("never run here")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelStage:
    produces: ClassVar[str] = "model"
    model: DecoderConfig | None = None
    tokenizer: Ref | None = input_field("tokenizer", default=None)
    start: Ref | None = input_field("model", default=None)

    def architecture(self, upstream: Upstream) -> DecoderConfig | None:
        return self.model or upstream["start"].architecture

    def check(self, upstream: Upstream) -> None:
        size, model = upstream["tokenizer"].vocab_size, self.architecture(upstream)
        assert size is not None and model is not None
        if size > model.vocab_size:
            raise ValueError(f"the tokenizer has {size} pieces, the model only vocab_size={model.vocab_size}")

    def run(self, inputs: Inputs, context: StageContext) -> None:
        raise AssertionError("never run here")


def experiment(**stages: Any) -> Experiment:
    return Experiment(seed=0, stages=stages)


def refusal(**stages: Any) -> str:
    with pytest.raises(ValueError) as caught:
        resolve(experiment(**stages))
    return str(caught.value)


def test_inputs_are_found_wherever_a_field_holds_them(toys: SimpleNamespace) -> None:
    stage = toys.Join(sources=(toys.Source(data=Ref("a")), toys.Source(data=External("b"))), extra=Ref("c"))
    found = graph.inputs_of(stage)
    assert {path: entry.source for path, entry in found.items()} == {
        "sources.0.data": Ref("a"),
        "sources.1.data": External("b"),
        "extra": Ref("c"),
    }
    assert found["sources.0.data"].kinds == ("dataset", "files")


def test_stages_are_ordered_by_their_inputs(toys: SimpleNamespace) -> None:
    join = toys.Join(sources=(toys.Source(data=Ref("a")), toys.Source(data=Ref("b"))))
    last = toys.Join(sources=(), extra=Ref("join"))
    resolved = resolve(experiment(last=last, join=join, b=toys.Words(), a=toys.Words(), alone=toys.Words()))
    assert list(resolved.nodes) == ["a", "b", "join", "last", "alone"]
    assert resolved.behind("a") == ("a", "join", "last")
    assert resolved.before("last") == ("a", "b", "join")


def test_a_missing_input_is_answered_with_the_nearest_names(toys: SimpleNamespace) -> None:
    join = toys.Join(sources=(toys.Source(data=Ref("wrods")),))
    assert refusal(words=toys.Words(), join=join) == (
        "stages.join.sources.0.data refers to the stage 'wrods', which doesn't exist; did you mean 'words'?"
    )
    with pytest.raises(ValueError, match="has no stage 'zzz'; its stages are words"):
        resolve(experiment(words=toys.Words())).behind("zzz")


def test_a_cycle_is_shown_as_a_path(toys: SimpleNamespace) -> None:
    stages = {name: toys.Join(sources=(), extra=Ref(read)) for name, read in [("a", "b"), ("b", "c"), ("c", "b")]}
    assert "cycle: b -> c -> b" in refusal(**stages)
    assert "cycle: a -> a" in refusal(a=toys.Join(sources=(), extra=Ref("a")))


def test_an_input_of_the_wrong_kind_is_refused(toys: SimpleNamespace) -> None:
    join = toys.Join(sources=(), extra=Ref("words"))
    assert refusal(words=toys.Words(), join=join) == "stages.join.extra needs 'report', but the stage 'words' produces 'dataset'"


def test_an_external_input_must_exist(toys: SimpleNamespace, tmp_path: Path) -> None:
    missing = toys.Join(sources=(toys.Source(data=External(str(tmp_path / "no"))),))
    assert refusal(join=missing) == f"stages.join.sources.0.data: nothing exists at {tmp_path / 'no'}"
    file = tmp_path / "text.txt"
    file.write_text("x")
    resolved = resolve(experiment(join=toys.Join(sources=(toys.Source(data=External(str(file))),))))
    assert resolved.nodes["join"].upstream["sources.0.data"].kind == "files"


def test_a_stages_own_check_sees_what_its_inputs_will_be() -> None:
    small, large = TokenizerStage(size=16), TokenizerStage(size=17)
    model = ModelStage(model=decoder(16), tokenizer=Ref("tokenizer"))
    tuned = ModelStage(start=Ref("model"), tokenizer=Ref("tokenizer"))
    resolved = resolve(experiment(tokenizer=small, model=model, tuned=tuned))
    assert resolved.nodes["tuned"].info.architecture == decoder(16)
    assert refusal(tokenizer=large, model=model) == "stage 'model': the tokenizer has 17 pieces, the model only vocab_size=16"


def test_a_value_of_the_wrong_type_is_refused(toys: SimpleNamespace) -> None:
    assert refusal(words=toys.Words(text=3)) == "stages.words.text must be str, found 3, int"


def test_an_experiment_holds_stages_with_names_that_can_be_folders(toys: SimpleNamespace) -> None:
    for name in ("a/b", "a.old-1", "", ".lock"):
        with pytest.raises(ValueError, match="must start with a letter"):
            experiment(**{name: toys.Words()})
    with pytest.raises(ValueError, match="stages.a must be a stage"):
        experiment(a=3)
    with pytest.raises(ValueError, match="at least one stage"):
        experiment()
