"""Qwen 2's pre-training: 4,096 tokens, then 32,768 with the RoPE base raised; the MoE is upcycled from the 7B.

Source: Yang et al. (2024), arXiv:2407.10671, sections 2 and 3. Tokens, lengths and bases are published; optimizer, learning rates,
batches, shares of the mixture and the tokens of the long stage are not. For inference up to 131,072 tokens see `inference`.
"""

import dataclasses
import math

from configs.data.domains import mixture, shards
from configs.models import qwen2 as models
from configs.models import tiny
from configs.recipes.parts import Figures, Recipe, Setting, mini_setting, ramp, steps_of
from lmx.data.ramp import Phase
from lmx.data.text import PackedText
from lmx.model.config import AttentionConfig, DecoderConfig, DualChunk, YarnScaling
from lmx.model.context import with_context
from lmx.model.upcycling import Upcycling
from lmx.objectives import RouterLoss
from lmx.optim import AdamW, Part, Schedule, WarmupCosine
from lmx.pipeline.stage import Ref, Stage
from lmx.stages import Pretrain, Training, Upcycle

DOMAINS = ("web", "multilingual", "code", "maths", "synthetic", "instructions", "long documents")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What the recipe is run at; the defaults are the report's figures, or our choice where it gives none.

    Attributes:
      model: as released, after the long-context stage.
      setting: text, vocabulary, precision.
      peak: learning rate.
      first_theta: RoPE base before the long-context stage; after it, that of `model`.
      first_length: of the rows before that stage; in it, that of `model`.
      tokens: of both stages together.
      long_share: of the tokens, for the long-context stage.
      batch_tokens: of a batch, in all stages.
      warmup_steps: of the learning rate.
      moe: the mixture of experts made from `model`; None = none is made.
      moe_tokens: that it trains on after upcycling.
      moe_peak: its learning rate.
    """

    model: DecoderConfig
    setting: Setting
    peak: float
    first_theta: float = 10_000.0
    first_length: int = 4_096
    tokens: float = 7e12
    long_share: float = 0.02
    batch_tokens: int = 4_194_304
    warmup_steps: int = 2_000
    moe: DecoderConfig | None = None
    moe_tokens: float = 4.5e12
    moe_peak: float = 1e-4


def pretraining(scale: Scale) -> Recipe:
    """Main stage, long-context stage, and for the MoE upcycling and its training."""
    at, length = scale, scale.model.max_length
    steps = steps_of((1 - at.long_share) * at.tokens, at.batch_tokens)
    long_steps = steps_of(at.long_share * at.tokens, at.batch_tokens)
    cosine = WarmupCosine(peak=at.peak, warmup_steps=at.warmup_steps, end_ratio=0.1)  # one curve over both stages
    stages: dict[str, Stage] = dict(
        tokenizer=at.setting.tokenizer("web", "multilingual", "code", "maths"),
        main=Pretrain(
            model=with_context(at.model, rope_theta=at.first_theta, max_length=at.first_length),
            tokenizer=Ref("tokenizer"),
            data=main_mixture(at),
            training=_training(at, steps, Part(schedule=cosine, start=0, total=steps + long_steps), length=at.first_length),
        ),
        long=Pretrain(
            model=at.model,
            tokenizer=Ref("tokenizer"),
            data=long_mixture(at),
            training=_training(at, long_steps, Part(schedule=cosine, start=steps, total=steps + long_steps), length=length),
            init=Ref("main"),
            new_context=True,  # another RoPE base, longer rows
            keep_optimizer="all",
        ),
    )
    if at.moe is not None:
        stages |= _experts(at, at.moe)
    return Recipe(stages=stages, figures=_figures(at))


def _experts(at: Scale, moe: DecoderConfig) -> dict[str, Stage]:
    """Upcycling: copies of each FFN, permuted, cut into experts, half of each drawn anew; then training, at last on long rows."""
    first, *later = phases = ramp(
        (0, at.batch_tokens, at.first_length), ((1 - at.long_share) * at.moe_tokens, at.batch_tokens, moe.max_length)
    )
    steps = steps_of(at.moe_tokens, at.batch_tokens, *phases)
    cosine = WarmupCosine(peak=at.moe_peak, warmup_steps=at.warmup_steps, end_ratio=0.1)
    change = later[0].from_tokens
    return dict(
        upcycled=Upcycle(source=Ref("long"), target=moe, settings=Upcycling(redrawn=0.5, unit="columns", shuffled=True)),
        experts=Pretrain(
            model=moe,
            tokenizer=Ref("tokenizer"),
            data=mixture(at.setting.domains, MAIN, [(change, LONG)]),
            training=_training(at, steps, cosine, length=first.length, later=tuple(later)),
            init=Ref("upcycled"),
            router=RouterLoss(balance=0.001),
        ),
    )


MAIN = {"web": 45.0, "multilingual": 15.0, "code": 20.0, "maths": 8.0, "synthetic": 7.0, "instructions": 5.0}
LONG = {"long documents": 50.0, "web": 20.0, "multilingual": 8.0, "code": 10.0, "maths": 4.0, "synthetic": 5.0, "instructions": 3.0}


def main_mixture(at: Scale) -> PackedText:
    """Web with much code, maths and other languages, text that models wrote, and instructions of many tasks."""
    return mixture(at.setting.domains, MAIN)


def long_mixture(at: Scale) -> PackedText:
    """The same with a much larger share of long documents."""
    return mixture(at.setting.domains, LONG)


def inference(model: DecoderConfig, *, factor: float = 4.0) -> DecoderConfig:
    """The model as it reads up to `factor` times its trained length: dual chunk attention, and YaRN's rescaling of the scores.

    The report names both; chunk and local window are those of the authors' code, 3/4 and 1/4 of the trained length. Positions stay
    below the trained length, so frequencies stay as they are; `deployed` is the setting without chunks.
    """
    trained = model.max_length
    chunks = DualChunk(window=trained, chunk_size=trained * 3 // 4, length_factor=factor)
    return _attending(model, dict(dual_chunk=chunks), round(factor * trained))


def deployed(model: DecoderConfig, *, factor: float = 4.0) -> DecoderConfig:
    """The released deployment setting: YaRN's frequencies and temperature, at every length, without chunks."""
    yarn = YarnScaling(factor=factor, original_length=model.max_length)
    return with_context(model, rope_scaling=yarn, max_length=round(factor * model.max_length))


def _attending(model: DecoderConfig, changes: dict[str, DualChunk], max_length: int) -> DecoderConfig:
    def changed(attention: AttentionConfig) -> AttentionConfig:
        return dataclasses.replace(attention, **changes)  # type: ignore[arg-type]

    blocks = tuple(dataclasses.replace(block, attention=changed(block.attention)) for block in model.layer_pattern)
    return dataclasses.replace(model, layer_pattern=blocks, max_length=max_length)


def _training(at: Scale, steps: int, schedule: Schedule, *, length: int, later: tuple[Phase, ...] = ()) -> Training:
    """AdamW as in Qwen 1: nothing of it is published for Qwen 2."""
    return Training(
        loop=at.setting.loop(steps),
        optimizer=AdamW(schedule=schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1),
        batch_size=at.batch_tokens // length,
        length=length,
        ramp=later,
        clip_norm=1.0,
        precision=at.setting.precision,
        remat=at.setting.remat,
    )


def _figures(at: Scale) -> dict[str, Figures]:
    """Where the numbers come from."""
    open_everywhere = {
        "rate": "not published; Qwen 1's shape, a cosine to a tenth of the peak",
        "optimizer": "not published; that of Qwen 1",
        "batch": "not published; the same tokens in all stages",
    }
    figures = {
        "tokenizer": at.setting.figures(report="pieces", choice={"kind": "SentencePiece; the report's is byte-level BPE"}),
        "main": at.setting.figures(
            report="tokens, length, RoPE base, domains",
            choice={**open_everywhere, "mixture": "shares are not published"},
        ),
        "long": at.setting.figures(
            report="length, RoPE base, more long documents",
            choice={
                **open_everywhere,
                "tokens": f"not published; {100 * at.long_share:g}% of all, counted among them",
                "mixture": "shares are not published",
                "join": "optimizer's state and cosine go on; base and length change at once",
            },
        ),
    }
    if at.moe is not None:
        figures["upcycled"] = at.setting.figures(
            report="copies, permutation, cut, half redrawn",
            code="experts and their width, shared expert",
            choice={
                "what is redrawn": "whole columns, with the deviation of the dense kernel",
                "router": "drawn at random; its start is not published",
            },
        )
        figures["experts"] = at.setting.figures(
            report="tokens",
            code="balance loss, RoPE base",
            choice={
                **open_everywhere,
                "length": f"not published; long rows for the last {100 * at.long_share:g}%, as for the dense models",
                "mixture": "not published; that of the dense models",
            },
        )
    return figures


def paper(model: DecoderConfig, *, peak: float, tokens: float = 7e12, moe: DecoderConfig | None = None) -> Scale:
    """One of the report's sizes over shards of text."""
    setting = Setting(domains=shards("data/qwen2", *DOMAINS), vocab_size=151_646)
    return Scale(model=model, setting=setting, peak=peak, tokens=tokens, moe=moe)


def mini() -> Scale:
    """A CPU: rows of 128, then of 1,024; bases whose longest wave is to the rows what it is in the report."""
    setting, head_dim, length = mini_setting(long_characters=2_400), 32, 1_024
    theta = tiny.matched_theta(10_000.0, trained_length=4_096, full_head_dim=128, length=128, head_dim=head_dim)
    sizes = dict(vocab_size=setting.vocab_size, model_dim=96, num_layers=4, q_heads=4, kv_heads=2, head_dim=head_dim)
    return Scale(
        model=tiny.qwen2(**sizes, ffn_dim=264, max_length=length, tied=False),
        setting=setting,
        peak=3e-3,
        first_theta=float(math.floor(theta)),
        first_length=128,
        tokens=1.4e6,
        long_share=0.2,
        batch_tokens=4_096,
        warmup_steps=20,
        moe=tiny.qwen2_moe(**sizes, ffn_dim=96, num_experts=8, experts_per_token=2, max_length=length),
        moe_tokens=0.5e6,
        moe_peak=1e-3,
    )


__all__ = ["DOMAINS", "Scale", "deployed", "inference", "mini", "models", "paper", "pretraining"]
