"""The stage that trains a policy on preference pairs: DPO, or any loss of its shape."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from jax.sharding import Mesh

from lmx.core.types import Array
from lmx.data.batches import preference_batch_spec
from lmx.data.loader import Loader
from lmx.losses.preference import dpo_loss
from lmx.model.config import DecoderConfig
from lmx.objectives import RouterLoss, preference
from lmx.pipeline.stage import External, Inputs, Ref, StageContext, StageResult, Upstream, Workload, input_field
from lmx.stages import training as stage_training
from lmx.stages.pairs import PairFormat
from lmx.stages.training import Training
from lmx.tokenizer.protocol import Tokenizer
from lmx.train.spec import TrainSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """Preference optimization against a frozen reference.

    Attributes:
      policy: the language model to start from.
      pairs: preference pairs, as `SamplePairs` leaves them; the held-out ones are used for evaluation.
      training: steps, batches of pairs, optimizer.
      reference: the model the policy is held to, None = the policy as it starts.
      loss: pure function of `policy_chosen, policy_rejected, reference_chosen, reference_rejected` ([B] float32 each, keywords)
        to [B].
      nll_weight: coefficient of the chosen responses' cross-entropy (0.2 in Llama 3.1).
      format: how pairs become batches.
      router: auxiliary losses of MoE routers.
    """

    produces: ClassVar[str] = "model"
    policy: Ref | External = input_field("model")
    pairs: Ref | External = input_field("dataset")
    training: Training
    reference: Ref | External | None = input_field("model", default=None)
    loss: Callable[..., Array] = partial(dpo_loss, beta=0.1)
    nll_weight: float = 0.0
    format: PairFormat = PairFormat()
    router: RouterLoss = RouterLoss()

    def architecture(self, upstream: Upstream) -> DecoderConfig:
        """As `HasArchitecture.architecture`."""
        return stage_training.require_language_model(upstream, "policy")

    def vocab_size(self, upstream: Upstream) -> int | None:
        """As `HasVocabulary.vocab_size`."""
        return upstream["policy"].vocab_size

    def check(self, upstream: Upstream) -> None:
        """As `HasCheck.check`."""
        self.training.check(self.architecture(upstream))
        self.training.check(self._reference_architecture(upstream))

    def workload(self, upstream: Upstream) -> Workload:
        """As `HasWorkload.workload`."""
        return self.training.workload(self.architecture(upstream), frozen=(self._reference_architecture(upstream),), rows=2)

    def batches(self, inputs: Inputs, context: StageContext) -> tuple[Loader, Tokenizer]:
        """As `HasBatches.batches`."""
        tokenizer = inputs["policy"].tokenizer()
        return self.training.load(self.format.read(inputs["pairs"], "train"), tokenizer, seed=context.seed), tokenizer

    def train_spec(self, upstream: Upstream, mesh: Mesh) -> TrainSpec:
        """As described in `lmx.pipeline.stage`."""
        return self._spec(self.architecture(upstream), self._reference_architecture(upstream), mesh)

    def _reference_architecture(self, upstream: Upstream) -> DecoderConfig:
        return stage_training.require_language_model(upstream, "policy" if self.reference is None else "reference")

    def _spec(self, policy_config: DecoderConfig, reference_config: DecoderConfig, mesh: Mesh) -> TrainSpec:
        policy, reference = (self.training.model(config, mesh) for config in (policy_config, reference_config))
        objective = preference(policy.apply, reference.apply, loss=self.loss, nll_weight=self.nll_weight, router=self.router)
        batch = preference_batch_spec(self.training.batch_size, self.training.length)
        return self.training.spec(policy, objective, batch, mesh, {"reference": reference})

    def run(self, inputs: Inputs, context: StageContext) -> StageResult:
        """As `Stage.run`."""
        reference = inputs["policy"] if self.reference is None else inputs["reference"]
        spec = self._spec(inputs["policy"].model_config(), reference.model_config(), stage_training.stage_mesh(context))
        loader, tokenizer = self.batches(inputs, context)
        stage_training.check_same_tokenizer({"policy": tokenizer, "reference": reference.tokenizer()})
        heldout = None
        if self.training.loop.eval_every is not None:
            heldout = self.training.load(self.format.read(inputs["pairs"], "heldout"), tokenizer, seed=None, epochs=1)
        return stage_training.fit(
            spec,
            self.training,
            context,
            tokenizer=tokenizer,
            loader=loader,
            eval_loader=heldout,
            frozen=stage_training.frozen_on_mesh(reference, spec, "reference"),
            init_params=stage_training.starting_from(inputs["policy"], spec),
            chat=inputs["policy"].chat(),
        )
