"""Llama 3.1's pre-training: ramps, a mixture that moves, six context steps behind gates, annealing with averaged checkpoints.

Source: Grattafiori et al. (2024), arXiv:2407.21783, sections 3.1.2, 3.2 and 3.4. The 405B's schedule is published; of the 8B and
70B the report gives peak rates and says that the recipes are similar. Tokens are written in decimal (15.6 trillion) and batches in
binary ("4M" = 1,024 rows of 4,096), as the figures fit together: 252 million tokens are 60 batches.
"""

import dataclasses
from typing import Literal

from configs.data.domains import SMALL_FACTS, mixture, shards
from configs.models import tiny
from configs.recipes.parts import Figures, Recipe, Setting, cosine_after, mini_setting, needle_test, ramp, steps_of
from lmx.data.ramp import Phase
from lmx.data.recall import Facts
from lmx.data.text import PackedText
from lmx.model.config import BlockConfig, DecoderConfig, Llama3Scaling
from lmx.optim import AdamW, Constant, LinearFrom, Part, Schedule, WarmupCosine
from lmx.pipeline.stage import Ref, Stage
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
      recall_share: percent of the main stage's tokens in short texts that ask for what they stated, and at least so many in the
        long ones of the context steps; 0 = the report's mixture, with 20% of questions about long texts.
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
    recall_share: float = 0.0
    lengths: tuple[int, ...] = (13_312, 20_480, 32_768, 52_224, 82_944, 131_072)
    lengthening_tokens: float = 800e9
    lengthening_rate: float | None = None
    annealing_tokens: float = 40e6
    annealing_batch_tokens: int = 1_048_576
    averaged: int = 5
    gate: LengthGate = LengthGate(short_length=8_192, needle=needle_test(Facts()), every=500)
    when_shut: Literal["stop", "continue"] = "stop"


def pretraining(scale: Scale) -> Recipe:
    """Main stage, context lengthening, annealing."""
    at = scale
    first, *later = phases = _ramp(at)
    steps = steps_of(at.tokens, at.batch_tokens, *phases)
    cosine = WarmupCosine(peak=at.peak, warmup_steps=at.warmup_steps, end_ratio=0.01)  # 8e-5 to 8e-7
    total = at.schedule_steps or round(1.09 * steps)
    rate = at.lengthening_rate or cosine_after(cosine, steps, total)
    stages: dict[str, Stage] = dict(
        tokenizer=at.setting.tokenizer("web", "multilingual", "code", "maths"),
        main=Pretrain(
            model=_before_lengthening(at),
            tokenizer=Ref("tokenizer"),
            data=main_mixture(at),
            training=_training(
                at,
                steps=steps,
                schedule=Part(schedule=cosine, start=0, total=total),
                batch_size=first.batch_size,
                length=first.length,
                more=tuple(later),
            ),
        ),
        lengthened=Lengthen(
            source=Ref("main"),
            data=lengthening_mixture(at),
            lengths=at.lengths,
            rope_scaling=_scaling(at),
            training=_training(
                at,
                steps=steps_of(at.lengthening_tokens / len(at.lengths), at.batch_tokens),
                schedule=Constant(value=rate),
                batch_size=at.batch_tokens // at.length,
                length=at.length,
            ),
            gate=at.gate,
            when_shut=at.when_shut,
            keep_optimizer="all",
        ),
        annealed=Pretrain(
            model=at.model,
            tokenizer=Ref("tokenizer"),
            data=annealing_mixture(at),
            training=_training(
                at,
                steps=steps_of(at.annealing_tokens, at.annealing_batch_tokens),
                schedule=LinearFrom(before=Constant(value=rate), before_steps=1),
                batch_size=at.annealing_batch_tokens // at.lengths[-1],
                length=at.lengths[-1],
                averaged=at.averaged,
            ),
            init=Ref("lengthened"),
            keep_optimizer="all",
        ),
    )
    return Recipe(stages=stages, figures=_figures(at))


def main_mixture(at: Scale) -> PackedText:
    """More maths and other languages on the way, recent web at the end; the final shares are the report's."""

    def with_recall(shares: dict[str, float]) -> dict[str, float]:
        if not at.recall_share:
            return shares
        return {name: (1 - at.recall_share / 100) * share for name, share in shares.items()} | {"synthetic": at.recall_share}

    return mixture(
        at.setting.domains,
        with_recall({"web": 64.0, "maths": 15.0, "code": 17.0, "multilingual": 4.0}),
        [
            (round(0.5 * at.tokens), with_recall({"web": 50.0, "maths": 25.0, "code": 17.0, "multilingual": 8.0})),
            (round(0.8 * at.tokens), with_recall(FINAL_MIX)),
        ],
    )


def lengthening_mixture(at: Scale) -> PackedText:
    """Half as much of everything, long documents, and questions about long texts."""
    questions = max(20.0, at.recall_share)
    rest = (100 - questions) / 80
    shares = {name: 0.5 * rest * share for name, share in FINAL_MIX.items()}
    return mixture(at.setting.domains, shares | {"long documents": 30.0 * rest, "long questions": questions})


def annealing_mixture(at: Scale, candidate: str | None = None) -> PackedText:
    """Maths, code and licensed text upsampled; or, as a probe of new data, 30% of a candidate domain and 70% the main mixture."""
    if candidate is None:
        shares = {"web": 20.0, "licensed": 20.0, "maths": 30.0, "code": 20.0, "multilingual": 5.0, "long questions": 5.0}
    else:
        shares = {name: 0.7 * share for name, share in FINAL_MIX.items()}
        shares[candidate] = shares.get(candidate, 0.0) + 30.0
    return mixture(at.setting.domains, shares)


def data_probe(scale: Scale, *, candidates: tuple[str, ...], tokens: float = 40e9) -> Recipe:
    """Annealing as a probe of data: a half-trained model, its rate led to 0 on the main mixture and on 30% of each candidate."""
    at, steps = scale, steps_of(scale.tokens / 2, scale.batch_tokens, *_ramp(scale))
    main = pretraining(at).stages["main"]
    assert isinstance(main, Pretrain)
    half = dataclasses.replace(main, training=dataclasses.replace(main.training, loop=at.setting.loop(steps)))
    annealing = _training(
        at,
        steps=steps_of(tokens, at.batch_tokens),
        schedule=LinearFrom(before=half.training.optimizer.schedule, before_steps=steps),  # type: ignore[attr-defined]
        batch_size=at.batch_tokens // at.length,
        length=at.length,
    )

    def annealed(data: PackedText) -> Pretrain:
        return dataclasses.replace(half, data=data, training=annealing, init=Ref("half"), keep_optimizer="all")

    names = {f"with_{name.replace(' ', '_')}": name for name in candidates}
    probes = {stage: annealed(annealing_mixture(at, name)) for stage, name in names.items()}
    given = at.setting.figures(
        report="tokens, rate, mixture",
        derived="length, RoPE base",
        choice={"batch": "that of the main stage"},
    )
    return Recipe(
        stages=dict(
            tokenizer=pretraining(at).stages["tokenizer"],
            half=half,
            default=annealed(mixture(at.setting.domains, FINAL_MIX)),
            **probes,
        ),
        figures={name: _figures(at)[of] for name, of in (("tokenizer", "tokenizer"), ("half", "main"))}
        | {"default": given}
        | dict.fromkeys(names, given),
    )


def _ramp(at: Scale) -> tuple[Phase, ...]:
    """4M tokens of half-length rows, 8M, 16M."""
    return ramp(
        (0, at.batch_tokens // 4, at.length // 2),
        (at.marks[0], at.batch_tokens // 2, at.length),
        (at.marks[1], at.batch_tokens, at.length),
    )


def _training(
    at: Scale,
    *,
    steps: int,
    schedule: Schedule,
    batch_size: int,
    length: int,
    more: tuple[Phase, ...] = (),
    averaged: int | None = None,
) -> Training:
    """AdamW with a decay of 0.1 times the rate; the betas and the clip are our choice."""
    return Training(
        loop=at.setting.loop(steps, keep_every=None if averaged is None else max(1, steps // 10)),
        optimizer=AdamW(schedule=schedule, b1=0.9, b2=0.95, weight_decay=0.1),
        batch_size=batch_size,
        length=length,
        ramp=more,
        average=None if averaged is None else Checkpoints(last=averaged),
        clip_norm=1.0,
        precision=at.setting.precision,
        remat=at.setting.remat,
    )


def _scaling(at: Scale) -> Llama3Scaling:
    """The frequency scaling of the released model."""
    scaling = at.model.layer_pattern[0].attention.rope.scaling
    assert isinstance(scaling, Llama3Scaling)
    return scaling


def _before_lengthening(at: Scale) -> DecoderConfig:
    """The model at its first length, frequencies not scaled."""

    def block(old: BlockConfig) -> BlockConfig:
        rope = dataclasses.replace(old.attention.rope, scaling=None)
        return dataclasses.replace(old, attention=dataclasses.replace(old.attention, rope=rope))

    return dataclasses.replace(at.model, layer_pattern=tuple(map(block, at.model.layer_pattern)), max_length=at.length)


def _figures(at: Scale) -> dict[str, Figures]:
    """Where the numbers come from."""
    flagship = at.peak == 8e-5  # of the others the report gives the peak, and says that the recipe is similar
    recall = {
        "recall": f"{at.recall_share:g}% of the tokens, so that so small a model learns to look things up: only at this scale"
    }
    recall = recall if at.recall_share else {}
    main = at.setting.figures(
        report="length, batch, marks of the ramp, RoPE base, final mixture, peak" + (", tokens, rate" if flagship else ""),
        choice={
            **({} if flagship else {"rate": "warm-up, cosine and end of the 405B", "tokens": "those of the 405B"}),
            "mixture": "the report says what rose and fell, and gives the shares at the end only",
            **recall,
            "b1, b2, clip, decay": "not published; a decay of 0.1 times the rate is that of the scaling-law runs",
        },
    )
    lengthened = at.setting.figures(
        report="tokens, batch, six steps to the last length, gates",
        code="RoPE base, frequency scaling",
        choice={
            "length": "those between are not published; geometric",
            "rate": "not published; where the cosine stopped",
            "mixture": "not published",
            **recall,
            "tolerance": "how near 'recovered' is, is not published",
            "scaling": "switched on here, for the report doesn't say when",
        },
    )
    annealed = at.setting.figures(
        report="tokens, length, rate, average",
        code="RoPE base",
        choice={
            "batch": "not published; 40M tokens are 2.4 batches of the stage before, too few for a ramp or an average",
            "mixture": "the report says that sources of high quality are upsampled",
            "averaged checkpoints": "which ones is not published",
        },
    )
    tokenizer = at.setting.figures(report="pieces", choice={"kind": "SentencePiece, for the report's extends tiktoken's 100K"})
    return {"tokenizer": tokenizer, "main": main, "lengthened": lengthened, "annealed": annealed}


def paper(model: DecoderConfig, *, peak: float, tokens: float = 15.6e12) -> Scale:
    """One of the papers' sizes over shards of text."""
    setting = Setting(domains=shards("data/llama31", *DOMAINS), vocab_size=128_000)
    return Scale(model=model, setting=setting, peak=peak, tokens=tokens)


def mini() -> Scale:
    """A CPU: rows of 64, then 128, then six steps to 1,024; marks at 2% and 18% of the tokens, for 252M is 0.0016% of 15.6T."""
    setting = mini_setting(long_characters=2_400)
    tokens = 2.4e6
    return Scale(
        model=tiny.llama3(
            setting.vocab_size,
            model_dim=64,
            num_layers=3,
            q_heads=4,
            kv_heads=2,
            head_dim=32,
            ffn_dim=176,
            max_length=1_024,
            lengthening=8,
        ),
        setting=setting,
        peak=5e-3,
        length=128,
        batch_tokens=2_048,
        marks=(0.02 * tokens, 0.184 * tokens),
        tokens=tokens,
        warmup_steps=30,
        schedule_steps=None,
        recall_share=40.0,
        lengths=(184, 256, 360, 512, 728, 1_024),
        lengthening_tokens=6 * 120 * 2_048,
        lengthening_rate=1e-3,
        annealing_tokens=40 * 2_048,
        annealing_batch_tokens=2_048,
        gate=LengthGate(
            short_length=128, short_tolerance=0.05, short_batches=4, needle=needle_test(SMALL_FACTS), accuracy=0.9, every=20
        ),
        when_shut="continue",
    )
