"""Each family's recipe from the tokenizer to the report, with a few steps of the smallest models that have every part."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.models import tiny
from configs.recipes import afm, gemma2, llama31, qwen2
from configs.recipes.parts import Recipe, Setting, mini_report, mini_setting, needle_test
from lmx.data.recall import Facts
from lmx.data.sources import Limited
from lmx.eval.summary import read_summary
from lmx.pipeline.runner import run_experiment
from lmx.stages import LengthGate
from lmx.stages.context_report import FIGURES
from lmx.stages.lengthen import GATES
from tests.fixtures import toy_run

VOCAB, BATCH = 512, 256
SIZES = {"model_dim": 32, "num_layers": 2, "q_heads": 2, "kv_heads": 1, "head_dim": 16, "ffn_dim": 48}
MINI = mini_setting(long_characters=400, vocab_size=VOCAB)
FEW = {name: Limited(source=source, max_bytes=60_000) for name, source in MINI.domains.items()}
SETTING = dataclasses.replace(MINI, domains=FEW, looks=1)
FACTS = Facts(question="{key}=", answer="{value};", digits=1)


def qwen2_recipe() -> tuple[Recipe, tuple[str, ...]]:
    moe = tiny.qwen2_moe(VOCAB, **SIZES | {"ffn_dim": 24}, num_experts=4, max_length=128)
    scale = dataclasses.replace(
        qwen2.mini(),
        model=tiny.qwen2(VOCAB, **SIZES, max_length=128, tied=False),
        setting=SETTING,
        first_length=64,
        tokens=8 * BATCH,
        long_share=0.5,
        batch_tokens=BATCH,
        warmup_steps=1,
        moe=moe,
        moe_tokens=4 * BATCH,
    )
    return qwen2.pretraining(scale), ("main", "long", "experts")


def afm_recipe() -> tuple[Recipe, tuple[str, ...]]:
    scale = dataclasses.replace(
        afm.mini(),
        model=tiny.afm(VOCAB, **SIZES, max_length=64),
        parent=tiny.afm(VOCAB, **SIZES | {"ffn_dim": 96}, max_length=64),
        setting=SETTING,
        batch_tokens=BATCH,
        **dict.fromkeys(("core_tokens", "mask_tokens", "continued_tokens", "lengthening_tokens"), 4 * BATCH),
        lengths=(64, 128, 256),
        warmup_steps=(1, 1, 1),
    )
    return afm.pretraining(scale), ("pruned", "core", "continued", "lengthened")


def gemma2_recipe() -> tuple[Recipe, tuple[str, ...]]:
    def size(ffn_dim: int) -> gemma2.Size:
        model = tiny.gemma2(VOCAB, **SIZES | {"ffn_dim": ffn_dim}, window=32, max_length=64)
        return gemma2.Size(model=model, tokens=4 * BATCH, rows=4, peak=3e-3)

    scale = gemma2.Scale(teacher=size(96), students={"student": size(48)}, setting=SETTING, length=64, warmup_steps=1)
    return gemma2.pretraining(scale), ("teacher", "student")


def llama31_recipe(looks: int = 1) -> tuple[Recipe, tuple[str, ...]]:
    needle = dataclasses.replace(needle_test(FACTS, samples=1), depths=(0.5,))
    scale = dataclasses.replace(
        llama31.mini(),
        model=tiny.llama3(VOCAB, **SIZES, max_length=128, lengthening=2),
        setting=dataclasses.replace(SETTING, looks=looks),
        length=64,
        batch_tokens=BATCH,
        marks=(BATCH / 2, 3 * BATCH),
        tokens=6 * BATCH,
        warmup_steps=1,
        lengths=(96, 128),
        lengthening_tokens=4 * BATCH,
        annealing_tokens=10 * BATCH,
        annealing_batch_tokens=BATCH,
        averaged=2,
        gate=LengthGate(short_length=64, short_tolerance=9.0, short_batches=1, needle=needle, accuracy=0.0, every=2),
        when_shut="stop",
    )
    return llama31.pretraining(scale), ("main", "lengthened", "annealed")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with toy_run.compile_cache(tmp_path_factory.getbasetemp() / "xla") as directory:
        yield directory


@pytest.mark.parametrize("make", [qwen2_recipe, afm_recipe, gemma2_recipe, llama31_recipe])
def test_a_recipe_runs_from_the_tokenizer_to_the_report(make: Callable[[], tuple[Recipe, tuple[str, ...]]], tmp_path: Path) -> None:
    recipe, models = make()
    setting: Setting = SETTING
    report = mini_report(recipe, setting, models=models, length=64, lengths=(64, 128), command="-", title="-")
    run_experiment(recipe.experiment("small", more=report), str(tmp_path))
    for name in recipe.stages:
        assert json.loads((tmp_path / name / "manifest.json").read_text())["status"] == "finished", name
    summary = read_summary(tmp_path / "summary.json")
    assert summary.text is not None
    assert [entry.name for entry in summary.text.entries if entry.kind == "model"] == list(models)
    context = json.loads((tmp_path / FIGURES).read_text())
    assert list(context) == list(models)
    longest = {name: rows[-1]["length"] for name, rows in context.items()}
    if make is llama31_recipe:
        assert longest == {"main": 64, "lengthened": 128, "annealed": 128}
        gates = json.loads((tmp_path / "lengthened" / GATES).read_text())
        assert [(record["length"], record["opened"]) for record in gates["lengths"]] == [(96, True), (128, True)]
