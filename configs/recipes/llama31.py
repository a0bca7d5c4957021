"""Llama 3.1's pre-training: ramps, a mixture that moves, six context steps behind gates, annealing with averaged checkpoints.

Source: Grattafiori et al. (2024), arXiv:2407.21783, sections 3.1.2, 3.2 and 3.4. The 405B's schedule is published; of the 8B and
70B the report gives peak rates and says that the recipes are similar. Tokens are written in decimal (15.6 trillion) and batches in
binary ("4M" = 1,024 rows of 4,096), as the figures fit together: 252 million tokens are 60 batches.
"""

import dataclasses

from configs.data.domains import SMALL_FACTS, mixture, shards
from configs.models import llama3, tiny
from configs.recipes.parts import Recipe, Setting, cosine_after, mini_setting, needle_test, ramp, steps_of
from lmx.data.recall import Facts
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig, Llama3Scaling
from lmx.model.context import with_context
from lmx.optim import AdamW, Constant, LinearFrom, Part, WarmupCosine
from lmx.pipeline.stage import Ref
from lmx.stages import Lengthen, LengthGate, Pretrain, Training
from lmx.train.averages import Checkpoints

DOMAINS = ("web", "recent web", "multilingual", "code", "maths", "licensed", "long documents", "long questions")
FINAL_MIX = {"web": 40.0, "recent web": 10.0, "maths": 25.0, "code": 17.0, "multilingual": 8.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What the recipe is run at; the defaults are the 405B's figures.

    Attributes:
      model: as released, lengthened; the stages before have `max_length=length` and no frequency scaling.
      setting: text, vocabulary, precision.
      peak: learning rate.
      length: of the rows after the first mark; before it they are half as long.
      batch_tokens: of a batch after the second mark; a quarter of it up to the first mark, and half up to the second.
      marks: tokens after which the batches change.
      tokens: of the main stage.
      warmup_steps: of the learning rate.
      schedule_steps: of the whole cosine, more than the main stage makes; None = 1.09 times those.
      lengths: of the context steps.
      lengthening_tokens: of all context steps together, at most.
      lengthening_rate: learning rate there; None = where the cosine stopped.
      annealing_tokens: of the last stage.
      annealing_batch_tokens: of its batches.
      averaged: how many of the ten checkpoints of the annealing are averaged.
      gate: when a context step is done.
      when_shut: what happens where a gate stays shut, "stop" or "continue".
    """

    model: DecoderConfig
    setting: Setting
    peak: float = 8e-5
    length: int = 8_192
    batch_tokens: int = 16_777_216
    marks: tuple[float, float] = (252e6, 2.87e12)
    tokens: float = 15.6e12
    warmup_steps: int = 8_000
    schedule_steps: int | None = 1_200_000
    lengths: tuple[int, ...] = (13_312, 20_480, 32_768, 52_224, 82_944, 131_072)
    lengthening_tokens: float = 800e9
    lengthening_rate: float | None = None
    annealing_tokens: float = 40e6
    annealing_batch_tokens: int = 1_048_576
    averaged: int = 5
    gate: LengthGate = LengthGate(short_length=8_192, needle=needle_test(Facts()), every=500)  # noqa: B008 (frozen)
    when_shut: str = "stop"


def pretraining(scale: Scale) -> Recipe:
    """Main stage, context lengthening, annealing."""
    at, text = scale, scale.setting.domains
    short = _short(at)
    first, *later = phases = ramp(
        (0, at.batch_tokens // 4, at.length // 2),
        (at.marks[0], at.batch_tokens // 2, at.length),
        (at.marks[1], at.batch_tokens, at.length),
    )
    steps = steps_of(at.tokens, at.batch_tokens, *phases)
    cosine = WarmupCosine(peak=at.peak, warmup_steps=at.warmup_steps, end_ratio=0.01)  # 8e-5 to 8e-7
    total = at.schedule_steps or round(1.09 * steps)
    rate = at.lengthening_rate or cosine_after(cosine, steps, total)
    length_steps = steps_of(at.lengthening_tokens / len(at.lengths), at.batch_tokens)
    anneal_steps = steps_of(at.annealing_tokens, at.annealing_batch_tokens)

    stages = dict(
        tokenizer=at.setting.tokenizer("web", "multilingual", "code", "maths"),
        main=Pretrain(
            model=short,
            tokenizer=Ref("tokenizer"),
            data=main_mixture(at),
            training=_training(
                at,
                steps=steps,
                schedule=Part(schedule=cosine, start=0, total=total),
                batch_size=first.batch_size,
                length=first.length,
                ramp=tuple(later),
            ),
        ),
        lengthened=Lengthen(
            source=Ref("main"),
            data=mixture(text, {"long documents": 30.0, "long questions": 20.0, **{k: v / 2 for k, v in FINAL_MIX.items()}}),
            lengths=at.lengths,
            rope_scaling=_scaling(at),
            training=_training(
                at,
                steps=length_steps,
                schedule=Constant(value=rate),
                batch_size=at.batch_tokens // at.length,
                length=at.length,
            ),
            gate=at.gate,
            when_shut=at.when_shut,  # type: ignore[arg-type]
            keep_optimizer="all",
        ),
        annealed=Pretrain(
            model=at.model,
            tokenizer=Ref("tokenizer"),
            data=annealing_mixture(at),
            training=dataclasses.replace(
                _training(
                    at,
                    steps=anneal_steps,
                    schedule=LinearFrom(before=Constant(value=rate), before_steps=1),
                    batch_size=at.annealing_batch_tokens // at.lengths[-1],
                    length=at.lengths[-1],
                ),
                loop=at.setting.loop(anneal_steps, keep_every=max(1, anneal_steps // 10)),
                average=Checkpoints(last=at.averaged),
            ),
            init=Ref("lengthened"),
            keep_optimizer="all",
        ),
    )
    return Recipe(stages=stages, figures=_figures(at))


def main_mixture(at: Scale) -> PackedText:
    """More maths and other languages on the way, recent web at the end; the final shares are the report's."""
    return mixture(
        at.setting.domains,
        {"web": 64.0, "maths": 15.0, "code": 17.0, "multilingual": 4.0},
        [
            (round(0.5 * at.tokens), {"web": 50.0, "maths": 25.0, "code": 17.0, "multilingual": 8.0}),
            (round(0.8 * at.tokens), FINAL_MIX),
        ],
    )


def annealing_mixture(at: Scale, candidate: str | None = None) -> PackedText:
    """Maths, code and licensed text upsampled; or, as a probe of new data, 30% of a candidate domain and 70% the main mixture."""
    if candidate is None:
        shares = {"web": 20.0, "licensed": 20.0, "maths": 30.0, "code": 20.0, "multilingual": 5.0, "long questions": 5.0}
    else:
        shares = {name: 0.7 * share for name, share in FINAL_MIX.items() if name != candidate} | {candidate: 30.0}
    return mixture(at.setting.domains, shares)


def data_probe(scale: Scale, *, candidates: tuple[str, ...], tokens: float = 40e9) -> Recipe:
    """Annealing as a probe of data: a half-trained model, its rate led to 0 once on the main mixture and once a candidate."""
    at, main = scale, pretraining(scale).stages["main"]
    assert isinstance(main, Pretrain)
    half = Pretrain.__call__ if False else dataclasses.replace  # placeholder
    raise NotImplementedError(half)


def _short(at: Scale) -> DecoderConfig:
    """The model before its context was lengthened."""
    return with_context(at.model, max_length=at.length, rope_scaling=None)


def _scaling(at: Scale) -> Llama3Scaling:
    scaling = at.model.layer_pattern[0].attention.rope.scaling
    assert isinstance(scaling, Llama3Scaling)
    return scaling
