"""The recipes against the reports' figures, the sources of the figures, and the mini scales as the same shape."""

import dataclasses
from pathlib import Path

import pytest

from configs.models import afm as afm_models
from configs.models import llama3, tiny
from configs.models import qwen2 as qwen2_models
from configs.recipes import afm, gemma2, llama31, qwen2
from configs.recipes.parts import Recipe, cosine_after, ramp
from lmx.data.ramp import Ramp
from lmx.model.config import DecoderConfig, Llama3Scaling
from lmx.optim import WarmupCosine
from lmx.pipeline.experiment import load_experiment
from lmx.pipeline.graph import resolve
from lmx.stages import Distill, Lengthen, Pretrain
from lmx.stages.table import FIGURES, stage_table, trains

ROOT = Path(__file__).parents[2]
FILES = sorted(path for family in ("qwen2", "afm", "gemma2", "llama31") for path in (ROOT / "experiments" / family).glob("*.py"))


def theta(model: DecoderConfig) -> float:
    return model.layer_pattern[0].attention.rope.theta


def stage(recipe: Recipe, name: str) -> Pretrain:
    found = recipe.stages[name]
    assert isinstance(found, Pretrain)
    return found


@pytest.fixture(scope="module")
def llama() -> Recipe:
    return llama31.pretraining(llama31.paper(llama3.llama31_405b(), peak=8e-5))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_figure_of_the_stage_table_has_a_source(path: Path) -> None:
    experiment = load_experiment(path)
    graph = resolve(experiment)
    trained = [node.name for node in graph.nodes.values() if trains(node)]
    assert trained
    for name in trained:
        assert set(FIGURES) <= experiment.figures[name].keys(), name
        assert all(origin.split(":")[0] in ORIGINS for origin in experiment.figures[name].values()), name
    lines = stage_table(graph, experiment.figures)
    assert [line for line in lines if line in trained] == trained  # a block of details each


ORIGINS = {"report", "report, scaled", "released code", "derived", "choice"}


def test_a_mark_is_moved_to_whole_batches() -> None:
    first, second, third = ramp((0, 4_194_304, 4_096), (252e6, 8_388_608, 8_192), (2.87e12, 16_777_216, 8_192))
    assert (first.batch_size, second.batch_size, third.batch_size) == (1_024, 1_024, 2_048)
    assert second.from_tokens == 60 * 4_194_304 == 251_658_240
    assert abs(third.from_tokens - 2.87e12) <= 8_388_608 / 2
    Ramp((first, second, third))  # refuses marks inside a batch or a row


def test_the_rate_where_a_cosine_stops_is_the_schedules_own() -> None:
    cosine = WarmupCosine(peak=8e-5, warmup_steps=8, end_ratio=0.01)
    assert cosine_after(cosine, 1_100, 1_200) == pytest.approx(float(cosine.build(1_200)(1_100)), rel=1e-4)
    assert cosine_after(cosine, 1_200, 1_200) == pytest.approx(8e-7)


def test_llama_31_405b_has_the_reports_marks_rates_and_lengths(llama: Recipe) -> None:
    main, lengthened, annealed = stage(llama, "main"), llama.stages["lengthened"], stage(llama, "annealed")
    assert [(phase.batch_size, phase.length, steps) for phase, steps in main.training.shapes.parts(main.training.loop.steps)] == [
        (1_024, 4_096, 60),
        (1_024, 8_192, 342_101),
        (2_048, 8_192, 758_767),
    ]
    rate = main.training.optimizer.learning_rate(main.training.loop.steps)
    assert float(rate(8_000)) == pytest.approx(8e-5)
    assert float(rate(0)) == pytest.approx(8e-5 / 8_001)
    assert main.data.mix is not None
    final = main.data.mix.points[-1].weights
    assert (final["web"] + final["recent web"], final["maths"], final["code"], final["multilingual"]) == (50, 25, 17, 8)
    assert isinstance(lengthened, Lengthen)
    assert len(lengthened.lengths) == 6 and lengthened.lengths[-1] == 131_072
    assert lengthened.training_at(131_072).batch_size * 131_072 == 16_777_216
    assert lengthened.when_shut == "stop" and lengthened.gate.accuracy == 1.0
    # The rate goes on where the cosine stopped, and the annealing leads it to 0 from there.
    stopped = float(rate(main.training.loop.steps))
    assert float(lengthened.training.optimizer.learning_rate(10)(3)) == pytest.approx(stopped, rel=1e-3)
    last = annealed.training.optimizer.learning_rate(annealed.training.loop.steps)
    assert float(last(0)) == pytest.approx(stopped, rel=1e-3) and float(last(annealed.training.loop.steps)) == 0.0
    assert annealed.training.average is not None
    assert annealed.training.workload(annealed.model).tokens == pytest.approx(40e6, rel=0.03)


def test_llama_frequency_scaling_begins_with_the_lengthening(llama: Recipe) -> None:
    main, lengthened = stage(llama, "main"), llama.stages["lengthened"]
    assert isinstance(lengthened, Lengthen)
    assert main.model.layer_pattern[0].attention.rope.scaling is None and main.model.max_length == 8_192
    assert isinstance(lengthened.rope_scaling, Llama3Scaling)
    assert stage(llama, "annealed").model == llama3.llama31_405b()


def test_a_data_probe_is_thirty_percent_candidate_and_seventy_percent_default() -> None:
    recipe = llama31.data_probe(llama31.mini(), candidates=("maths", "licensed"), tokens=1e5)
    for name, candidate, share in (("with_maths", "maths", 0.3 + 0.7 * 0.25), ("with_licensed", "licensed", 0.3)):
        weights = {part.name: part.weight for part in stage(recipe, name).data.components}
        assert weights[candidate] / sum(weights.values()) == pytest.approx(share)
    half, default = stage(recipe, "half"), stage(recipe, "default")
    rate = default.training.optimizer.learning_rate(default.training.loop.steps)
    assert float(rate(0)) == pytest.approx(
        float(half.training.optimizer.learning_rate(half.training.loop.steps)(half.training.loop.steps))
    )
    assert float(rate(default.training.loop.steps)) == 0.0


def test_qwen2_raises_base_and_length_at_once_and_goes_on_with_its_cosine() -> None:
    recipe = qwen2.pretraining(qwen2.paper(qwen2_models.qwen2_7b(), peak=3e-4))
    main, long = stage(recipe, "main"), stage(recipe, "long")
    assert (theta(main.model), main.training.length, theta(long.model), long.training.length) == (1e4, 4_096, 1e6, 32_768)
    assert main.training.batch_size * 4_096 == long.training.batch_size * 32_768
    tokens = [one.training.workload(one.model).tokens for one in (main, long)]
    assert sum(tokens) == pytest.approx(7e12, rel=1e-6)
    steps = main.training.loop.steps
    assert float(main.training.optimizer.learning_rate(steps)(steps)) == pytest.approx(
        float(long.training.optimizer.learning_rate(long.training.loop.steps)(0)), rel=1e-4
    )
    weights = {part.name: part.weight for part in long.data.components}
    assert weights["long documents"] / sum(weights.values()) >= 0.5


def test_qwen2_57b_trains_4_5t_tokens_after_upcycling_the_long_model() -> None:
    recipe = qwen2.pretraining(qwen2.paper(qwen2_models.qwen2_7b(), peak=3e-4, moe=qwen2_models.qwen2_57b_a14b()))
    experts = stage(recipe, "experts")
    assert experts.model == qwen2_models.qwen2_57b_a14b()
    assert experts.training.workload(experts.model).tokens == pytest.approx(4.5e12, rel=1e-5)
    assert experts.router.balance == 0.001


def test_qwen2_inference_reads_four_times_the_trained_length() -> None:
    model = qwen2.inference(qwen2_models.qwen2_7b())
    chunks = model.layer_pattern[0].attention.dual_chunk
    assert chunks is not None and (model.max_length, chunks.window, chunks.chunk_size) == (131_072, 32_768, 24_576)
    assert qwen2.deployed(qwen2_models.qwen2_7b()).max_length == 131_072


def test_afm_has_the_reports_stages() -> None:
    recipe = afm.pretraining(afm.paper(afm_models.afm_server_proxy(), vocab_size=100_352))
    core, continued, lengthened = (stage(recipe, name) for name in ("core", "continued", "lengthened"))
    assert [(one.training.length, theta(one.model)) for one in (core, continued, lengthened)] == [
        (4_096, 500_000.0),
        (8_192, 500_000.0),
        (32_768, 6_315_089.0),
    ]
    assert core.training.batch_size == 4_096
    assert [one.training.loop.steps for one in (core, continued, lengthened)] == [375_510, 59_605, 5_961]
    rate = core.training.optimizer.learning_rate(375_510)
    assert float(rate(5_000)) == pytest.approx(0.01) and float(rate(375_510)) == pytest.approx(0.01 * 0.005)
    later = continued.training.optimizer.learning_rate(59_605)
    assert float(later(1_000)) == pytest.approx(3e-4) and float(later(59_605)) == pytest.approx(3e-7, rel=1e-3)
    assert (core.training.clip_norm, core.training.drop_norm) == (1.0, 100.0)
    assert "licensed" not in {part.name for part in core.data.components}
    assert "licensed" in {part.name for part in continued.data.components}
    assert "long questions" in {part.name for part in lengthened.data.components}


def test_afm_on_device_distills_in_the_core_only() -> None:
    scale = afm.paper(afm_models.afm_on_device(), vocab_size=49_152, parent=afm_models.afm_parent())
    recipe = afm.pretraining(scale)
    distilled = [name for name, one in recipe.stages.items() if isinstance(one, Distill)]
    assert distilled == ["core"]
    assert list(recipe.stages) == ["tokenizer", "parent", "pruned", "core", "continued", "lengthened"]


def test_gemma2_students_learn_from_the_whole_distribution_without_labels() -> None:
    recipe = gemma2.pretraining(gemma2.mini())
    students = [one for one in recipe.stages.values() if isinstance(one, Distill)]
    assert [(one.target.alpha, one.target.temperature) for one in students] == [(1.0, 1.0)] * 2  # type: ignore[attr-defined]


def test_mini_bases_keep_the_longest_wave_in_the_same_ratio_to_the_rows() -> None:
    assert theta(tiny.llama3(head_dim=32, max_length=1_024, lengthening=8)) == pytest.approx(11_411, rel=1e-3)
    scale = qwen2.mini()
    assert scale.first_theta == 393 and theta(scale.model) == pytest.approx(49_489, rel=1e-3)
    small = afm.mini()
    assert theta(small.model) == pytest.approx(23_902, rel=1e-3) and small.lengthened_theta == pytest.approx(1_036_788, rel=1e-3)
    assert theta(gemma2.mini().teacher.model) == pytest.approx(424.5, rel=1e-3)


@pytest.mark.parametrize("family", [qwen2, afm, gemma2, llama31], ids=lambda module: module.__name__.split(".")[-1])
def test_a_mini_has_the_stages_of_the_papers_recipe(family) -> None:
    assert resolve(family.pretraining(family.mini()).experiment("mini"))
    assert family.mini().setting.origin == "report, scaled"


def test_a_domain_that_is_not_there_is_named() -> None:
    scale = gemma2.mini()
    domains = {name: source for name, source in scale.setting.domains.items() if name != "maths"}
    short = dataclasses.replace(scale, setting=dataclasses.replace(scale.setting, domains=domains))
    with pytest.raises(ValueError, match="names maths; the domains are"):
        gemma2.text_mixture(short)
