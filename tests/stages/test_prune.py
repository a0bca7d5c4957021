"""The stages that make models of other models: cut by scores, cut by learned masks, and upcycled to experts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.core import storage
from lmx.model.decoder import build_model
from lmx.model.upcycling import Upcycling, upcycle
from lmx.pipeline import graph
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.stage import Ref, StageContext
from lmx.pruning import learned
from lmx.sharding.mesh import MeshConfig
from lmx.stages import Importance, LearnMasks, Prune, Random, Sample, Upcycle

VOCAB = 264
SIZES = {"model_dim": 32, "num_layers": 2, "q_heads": 2, "kv_heads": 1, "head_dim": 16, "ffn_dim": 32, "max_length": 64}
SOURCE = tiny.qwen2(VOCAB, **SIZES)


def resized(**sizes):
    return tiny.qwen2(VOCAB, **SIZES | sizes)


@pytest.fixture(scope="module")
def text(stages):
    return stages["teacher"].data


@pytest.fixture(scope="module")
def run(tmp_path_factory, language_model):
    """`run(stage, folder=..., mesh=...)`: runs a stage on the model of seed 0."""

    def run(stage, *, folder=None, mesh=MeshConfig()):  # noqa: B008
        folder = storage.as_path(folder or tmp_path_factory.mktemp("stage"))
        context = StageContext(workdir=folder, name="it", seed=5, mesh=mesh)
        return Artifact(folder), stage.run({"source": language_model(0)}, context)

    return run


@pytest.mark.parametrize("activations", [False, True])
def test_a_pruned_model_loads_at_its_smaller_size(run, text, activations):
    sample = Sample(data=text, batch_size=4, length=64, batches=2) if activations else None
    target = resized(ffn_dim=20, q_heads=1, model_dim=24, **({"num_layers": 1} if activations else {}))
    artifact, result = run(Prune(source=Ref("s"), target=target, method=Importance(sample=sample)))
    loaded = artifact.load()
    assert loaded.model.config == target and loaded.tokenizer.vocab_size == 259
    count = sum(x.size for x in jax.tree.leaves(loaded.params))
    assert count == result.metrics["parameters"] < result.metrics["parameters_before"]


def test_the_cut_does_not_depend_on_the_mesh(run, text):
    stage = Prune(
        source=Ref("s"), target=resized(ffn_dim=24), method=Importance(sample=Sample(data=text, batch_size=4, length=64, batches=1))
    )
    one, _ = run(stage)
    many, _ = run(stage, mesh=MeshConfig(fsdp=2, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, one.load().params, many.load().params)


def test_a_random_slice_depends_on_the_seed_alone(run):
    stage = Prune(source=Ref("s"), target=resized(ffn_dim=16), method=Random())
    jax.tree.map(np.testing.assert_array_equal, run(stage)[0].load().params, run(stage)[0].load().params)


@pytest.fixture
def masks(text, make_training):
    """`masks(...)`: the stage that learns masks, five steps of it."""

    def masks(**changes):
        training = make_training(steps=5, eval_every=None)
        training = dataclasses.replace(training, loop=dataclasses.replace(training.loop, checkpoint_every=1))
        return LearnMasks(**dict(source=Ref("s"), target=resized(ffn_dim=20), data=text, training=training) | changes)

    return masks


def test_masks_are_learned_and_the_model_left_is_the_child(run, masks, make_training, language_model):
    training = make_training(steps=5, eval_every=5)
    artifact, result = run(masks(training=training, freeze_weights=True))
    loaded = artifact.load()
    assert loaded.model.config == resized(ffn_dim=20)
    assert result.metrics["train/mask_eps"] == pytest.approx(0.02 ** (4 / 5), rel=1e-3)  # before the last update
    assert result.metrics["eval/mask_eps"] == pytest.approx(0.02, rel=1e-3)
    assert 0 <= result.metrics["eval/mask_softness"] < 0.6 and np.isfinite(result.metrics["eval/nll"])
    parent = language_model(0).load().params
    np.testing.assert_array_equal(loaded.params["embed"]["table"], parent["embed"]["table"])
    gate, wide = (p["blocks"]["0"]["ffn"]["gate"]["kernel"] for p in (loaded.params, parent))
    for layer in range(2):
        assert all(any(np.array_equal(column, other) for other in wide[layer].T) for column in gate[layer].T)


def test_an_interrupted_learning_of_masks_goes_on_to_the_same_child(run, masks, tmp_path, monkeypatch):
    whole, _ = run(masks())
    harden = learned.harden
    monkeypatch.setattr(learned, "harden", lambda *args: (_ for _ in ()).throw(RuntimeError("killed before the cut")))
    with pytest.raises(RuntimeError, match="killed before the cut"):
        run(masks(), folder=tmp_path)
    kept = storage.as_path(tmp_path / "checkpoints")
    assert (kept / "4").exists()
    (kept / "5").rmtree()  # as if it had been killed after the fourth step
    monkeypatch.setattr(learned, "harden", harden)
    resumed, _ = run(masks(), folder=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.load().params, whole.load().params)


def test_masks_train_on_a_mesh_as_on_one_device(run, masks):
    one, alone = run(masks())
    many, together = run(masks(), mesh=MeshConfig(fsdp=2, tensor=2))
    assert alone.metrics["train/loss"] == pytest.approx(together.metrics["train/loss"], rel=1e-4)
    assert one.model_config() == many.model_config()


def test_upcycling_streams_what_the_pure_function_makes(run, language_model):
    target = tiny.qwen2_moe(260, **SIZES | {"ffn_dim": 24}, num_experts=4, experts_per_token=2)
    target = dataclasses.replace(target, head=SOURCE.head)
    artifact, result = run(Upcycle(source=Ref("s"), target=target))
    loaded = artifact.load()
    expected = upcycle(language_model(0).load().params, SOURCE, target, jax.random.key(5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), loaded.params, expected)
    assert result.metrics == {"parameters": build_model(target).num_params(), "copies": 3, "dropped_columns": 0}
    again, _ = run(Upcycle(source=Ref("s"), target=target, settings=Upcycling(redrawn=0.0)), folder=artifact.path)
    assert not jnp.array_equal(
        again.load().params["blocks"]["0"]["ffn"]["experts"]["up"], loaded.params["blocks"]["0"]["ffn"]["experts"]["up"]
    )


def test_what_cannot_be_made_is_refused_before_anything_runs(stages, masks, text, make_training):
    def resolve(stage):
        kept = {"tokenizer": stages["tokenizer"], "teacher": dataclasses.replace(stages["teacher"], model=SOURCE)}
        graph.resolve(Experiment(seed=0, stages=kept | {"it": dataclasses.replace(stage, source=Ref("teacher"))}))

    moe = tiny.qwen2_moe(VOCAB, **SIZES)
    average = dataclasses.replace(make_training(eval_every=None), average=None, length=65)
    long = Importance(sample=Sample(data=text, batch_size=4, length=65, batches=1))
    cases = [
        (Prune(source=Ref("s"), target=SOURCE), "the target is the source itself"),
        (Prune(source=Ref("s"), target=resized(num_layers=1)), "1 layers must go, but weights don't tell which"),
        (Prune(source=Ref("s"), target=resized(ffn_dim=33)), r"ffn_dim=33 exceeds the source's 32"),
        (
            Prune(source=Ref("s"), target=resized(ffn_dim=8), method=long),
            "method.sample.length=65 exceeds the model's max_length=64",
        ),
        (masks(target=resized(model_dim=16)), "masks are learned on the width of FFNs"),
        (masks(training=average), "training.length=65 exceeds the model's max_length=64"),
        (Upcycle(source=Ref("s"), target=resized(ffn_dim=16)), "there is nothing to make|changes FFNs only"),
        (
            Upcycle(source=Ref("s"), target=dataclasses.replace(moe, vocab_size=200, head=SOURCE.head)),
            "259 pieces but the model's vocab_size is 200",
        ),
    ]
    for stage, message in cases:
        with pytest.raises(ValueError, match=message):
            resolve(stage)
    resolve(Prune(source=Ref("s"), target=resized(num_layers=1), method=Random()))
    with pytest.raises(ValueError, match="importance by nothing"):
        Importance(weights=False)
