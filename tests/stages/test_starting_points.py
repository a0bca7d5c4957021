"""Where training starts: the source's parameters, a fresh head, and the token at which a reward is read."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lmx
from configs.models import tiny
from lmx.data.sources import JsonLines
from lmx.data.supervised import Preferences
from lmx.model.config import ScalarHead
from lmx.model.decoder import build_model
from lmx.objectives import sequence_rewards
from lmx.optim.schedules import Constant
from lmx.pipeline.artifact import Artifact
from lmx.pipeline.experiment import Experiment
from lmx.pipeline.runner import run_experiment
from lmx.pipeline.stage import External
from lmx.sharding.mesh import MeshConfig
from lmx.stages import Preference, RewardModel, Training
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat


def standing_still(training: Training) -> Training:
    """One step at rate 0: what comes out is what training started from."""
    loop = dataclasses.replace(training.loop, steps=1, eval_every=None)
    return dataclasses.replace(training, loop=loop, optimizer=dataclasses.replace(training.optimizer, schedule=Constant(value=0.0)))


def test_a_reward_model_starts_as_its_source_with_a_head_of_its_own(
    language_model: Callable[[int], Artifact], pairs: Artifact, make_training: Callable[..., Training], tmp_path: Path
) -> None:
    source = language_model(0)
    Chat("chatml", (ByteTokenizer.eos_id,)).save(Path(source.path) / "tokenizer")
    stage = RewardModel(
        source=External(str(source.path)), pairs=External(str(pairs.path)), training=standing_still(make_training())
    )
    run_experiment(Experiment(seed=1, stages={"reward": stage}, mesh=MeshConfig(fsdp=2)), tmp_path)
    loaded = lmx.load(tmp_path / "reward")
    assert loaded.chat is not None and loaded.chat.template == "chatml"  # the way to write conversations goes along
    params = loaded.params
    head = params.pop("head")["table"]
    jax.tree.map(np.testing.assert_array_equal, params, source.load_params())
    assert head.shape == (1, 32) and 0.05 < float(np.std(head)) < 0.5


def test_a_policy_can_be_held_to_another_model_than_its_own_start(
    language_model: Callable[[int], Artifact], pairs: Artifact, make_training: Callable[..., Training], tmp_path: Path
) -> None:
    policy, reference = language_model(0), language_model(1)
    stage = Preference(
        policy=External(str(policy.path)),
        reference=External(str(reference.path)),
        pairs=External(str(pairs.path)),
        training=standing_still(make_training()),
    )
    made = run_experiment(Experiment(seed=1, stages={"dpo": stage}), tmp_path)["dpo"]
    jax.tree.map(np.testing.assert_array_equal, made.load_params(), policy.load_params())
    assert made.manifest is not None and abs(made.manifest.metrics["train/chosen_reward"]) > 1e-3


def test_a_reward_is_read_at_the_eos_token_and_so_depends_on_the_response(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "2+2", "chosen": "4", "rejected": "5"}\n')
    source = JsonLines(path=str(tmp_path / "pairs.jsonl"))
    loader = Preferences(source=source).loader(ByteTokenizer(), batch_size=1, length=48, seed=None)
    batch = next(loader)
    model = build_model(dataclasses.replace(tiny.qwen2(264, model_dim=32, num_layers=2, max_length=48), head=ScalarHead()))
    params = model.init(jax.random.key(0))

    @jax.jit
    def read(rows: Any) -> Any:
        outputs = model.apply(params, rows)
        return sequence_rewards(outputs, rows), outputs.hidden @ outputs.head[0]

    (chosen, everywhere), (rejected, _) = read(batch.chosen), read(batch.rejected)
    (end,) = np.flatnonzero(batch.chosen.tokens[0] == ByteTokenizer().eos_id)
    assert batch.chosen.segment_ids[0, end] == 1 and not batch.chosen.segment_ids[0, end + 1 :].any()
    np.testing.assert_allclose(chosen[0], everywhere[0, end], rtol=1e-5)
    assert abs(float(chosen[0] - rejected[0])) > 1e-3
