"""AFM's pre-training: core, continued, context lengthening; on the device pruned from a 6.4B parent, and its core distilled.

Source: Gunter et al. (2024), arXiv:2407.21075, section 3; constants of the optimizer also in apple/axlearn's "honeycrisp" family,
which is never called AFM there. Mixture weights, the batches after the core, and how a stage takes over the optimizer's state are
not published.
"""

import dataclasses

from configs.data.domains import mixture, shards
from configs.models import tiny
from configs.recipes.parts import Figures, Recipe, Setting, mini_setting, steps_of
from lmx.data.text import PackedText
from lmx.model import rope
from lmx.model.config import DecoderConfig
from lmx.model.context import with_context
from lmx.optim import MuPSimple, RMSProp, WarmupCosine
from lmx.pipeline.stage import Ref, Stage
from lmx.pruning.learned import MaskSchedule
from lmx.stages import Distill, LearnMasks, Pretrain, Top1Mix, Training

DOMAINS = ("web", "code", "maths", "licensed", "long questions")
Z_LOSS = 1e-6
CORE = {"web": 80.0, "code": 14.0, "maths": 6.0}
CONTINUED = {"web": 40.0, "code": 28.0, "maths": 20.0, "licensed": 12.0}
LENGTHENING = {**{name: 0.7 * share for name, share in CONTINUED.items()}, "long questions": 30.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What the recipe is run at; the defaults are the report's figures.

    Attributes:
      model: as in the core stage: its RoPE base, and `max_length` as long as its rows.
      setting: text, vocabulary, precision.
      parent: what the model is pruned from, which then teaches it; None = the core starts from random parameters.
      batch_tokens: of a batch, in all stages (4,096 rows of 4,096 in the core).
      core_tokens: tokens of the core stage, also of the parent's.
      mask_tokens: of the pruning.
      continued_tokens: of the continued stage.
      lengthening_tokens: of the last stage.
      lengths: of the rows in the three stages.
      lengthened_theta: RoPE base of the last stage.
      peaks: learning rates of core and of what follows, before muP-simple's factor.
      warmup_steps: of core and of what follows.
      mup_base: width at which the core's peak was found.
    """

    model: DecoderConfig
    setting: Setting
    parent: DecoderConfig | None = None
    batch_tokens: int = 16_777_216
    core_tokens: float = 6.3e12
    mask_tokens: float = 188e9
    continued_tokens: float = 1e12
    lengthening_tokens: float = 100e9
    lengths: tuple[int, int, int] = (4_096, 8_192, 32_768)
    lengthened_theta: float = 6_315_089.0
    peaks: tuple[float, float] = (0.01, 3e-4)
    warmup_steps: tuple[int, int, int] = (5_000, 1_000, 1_000)
    mup_base: int = 768


def pretraining(scale: Scale) -> Recipe:
    """Core, continued and lengthening; before them, on the device, parent and masks."""
    at = scale
    lengthened = with_context(at.model, rope_theta=at.lengthened_theta, max_length=at.lengths[2])
    continued = with_context(at.model, max_length=at.lengths[1])
    stages: dict[str, Stage] = dict(tokenizer=at.setting.tokenizer("web", "code", "maths"))
    stages |= dict(core=_from_labels(at, at.model)) if at.parent is None else _pruned_and_distilled(at, at.parent)
    stages |= dict(
        continued=Pretrain(
            model=continued,
            tokenizer=Ref("tokenizer"),
            data=mixture(at.setting.domains, CONTINUED),
            training=_later(at, at.continued_tokens, length=at.lengths[1], warmup_steps=at.warmup_steps[1]),
            init=Ref("core"),
            new_context=continued != at.model,
            keep_optimizer="mean_squares",
            z_loss=Z_LOSS,
        ),
        lengthened=Pretrain(
            model=lengthened,
            tokenizer=Ref("tokenizer"),
            data=mixture(at.setting.domains, LENGTHENING),
            training=_later(at, at.lengthening_tokens, length=at.lengths[2], warmup_steps=at.warmup_steps[2]),
            init=Ref("continued"),
            new_context=True,
            keep_optimizer="mean_squares",
            z_loss=Z_LOSS,
        ),
    )
    return Recipe(stages=stages, figures=_figures(at))


def _from_labels(at: Scale, model: DecoderConfig) -> Pretrain:
    """The core stage on text alone."""
    return Pretrain(model=model, tokenizer=Ref("tokenizer"), data=core_mixture(at), training=_core(at), z_loss=Z_LOSS)


def _pruned_and_distilled(at: Scale, parent: DecoderConfig) -> dict[str, Stage]:
    """The parent trained, its FFNs pruned by learned masks, and the core stage with the parent's best token at 0.9."""
    return dict(
        parent=_from_labels(at, with_context(parent, max_length=at.lengths[0])),
        pruned=LearnMasks(
            source=Ref("parent"),
            target=at.model,
            data=core_mixture(at),
            training=_later(at, at.mask_tokens, length=at.lengths[0], warmup_steps=at.warmup_steps[1]),
            schedule=MaskSchedule(first_eps=1.0, last_eps=0.02),
            mask_rate=10.0,
            z_loss=Z_LOSS,
        ),
        core=Distill(
            student=at.model,
            teacher=Ref("parent"),
            data=core_mixture(at),
            training=_core(at),
            target=Top1Mix(weight=0.9),
            init=Ref("pruned"),
        ),
    )


def core_mixture(at: Scale) -> PackedText:
    """Broad and mostly web; nothing licensed."""
    return mixture(at.setting.domains, CORE)


def _core(at: Scale) -> Training:
    """Peak 0.01, warm-up 5,000, cosine to 0.005 of it, decay 3.16e-4."""
    schedule = WarmupCosine(peak=at.peaks[0], warmup_steps=at.warmup_steps[0], end_ratio=0.005)
    return _training(at, at.core_tokens, schedule, weight_decay=3.16e-4, length=at.lengths[0])


def _later(at: Scale, tokens: float, *, length: int, warmup_steps: int) -> Training:
    """Peak 3e-4, warm-up 1,000, down to 0.001 of it, decay 1e-5."""
    schedule = WarmupCosine(peak=at.peaks[1], warmup_steps=warmup_steps, end_ratio=0.001)
    return _training(at, tokens, schedule, weight_decay=1e-5, length=length)


def _training(at: Scale, tokens: float, schedule: WarmupCosine, *, weight_decay: float, length: int) -> Training:
    """RMSProp with clipped updates and muP-simple; gradients clipped at 1, steps from a norm of 100 on left out."""
    return Training(
        loop=at.setting.loop(steps_of(tokens, at.batch_tokens), nonfinite="skip"),
        optimizer=RMSProp(
            schedule=schedule,
            b1=0.95,
            b2=0.95,
            square_eps=1e-30,
            update_clip=1.0,
            weight_decay=weight_decay,
            mup=MuPSimple(base_width=at.mup_base),
        ),
        batch_size=at.batch_tokens // length,
        length=length,
        clip_norm=1.0,
        drop_norm=100.0,
        precision=at.setting.precision,
        remat=at.setting.remat,
    )


def _figures(at: Scale) -> dict[str, Figures]:
    """Where the numbers come from."""
    join = {"optimizer's state": "mean squares kept, momentum at 0, a new schedule: the report doesn't say"}
    shares = {"mixture": "shares are not published"}
    constants = "optimizer, update clip, skipped steps"
    device_batch = {"batch": "published for the server, 4,096 rows; the device's differs and is not"} if at.parent else {}
    server_batch = "" if at.parent else ", batch"
    core = "tokens, length, rate, weight decay, RoPE base, muP-simple" + server_batch
    figures = {
        "tokenizer": at.setting.figures(report="pieces, SentencePiece BPE with split digits and byte fallback"),
        "core": at.setting.figures(
            report=core, code=constants + ("" if at.parent else ", z-loss"), choice={**device_batch, **shares}
        ),
        "continued": at.setting.figures(
            report="tokens, length, rate, weight decay, RoPE base, web down and code and maths up, licensed text in",
            code=constants + ", z-loss",
            choice={"batch": "tokens a batch as in the core; the report leaves open whether rows or tokens stay", **shares, **join},
        ),
        "lengthened": at.setting.figures(
            report="tokens, length, RoPE base, synthetic long questions",
            code=constants + ", z-loss",
            choice={
                "rate": "similar to the continued stage's; warm-up and end are not published",
                "batch": "tokens a batch as before: with as many rows there would be 745 steps",
                **shares,
                **join,
            },
        ),
    }
    if at.parent is None:
        return figures
    teacher = {"teacher": "the parent; the report says a larger model"}
    figures["core"] |= at.setting.figures(
        report="weight 0.9 on the teacher's best token, start from the pruned model", choice=teacher
    )
    return {
        "parent": at.setting.figures(
            report="size, RoPE base, length",
            code=constants + ", z-loss",
            choice={
                "tokens": "those of the core; the parent's are not published",
                "rate": "the core's",
                **device_batch,
                **shares,
                "FFN width": "solved from 6.4B without the embedding",
            },
        ),
        "pruned": at.setting.figures(
            report="tokens, FFN widths only, soft top-k masks, mixture of the core",
            derived="length, RoPE base, mixture",
            choice={
                "rate": "that of the continued stage, ten times that for the masks",
                "batch": "the core's",
                "temperature": "1 to 0.02, geometric; k fixed at the child's width",
            },
        ),
    } | figures


def paper(model: DecoderConfig, *, vocab_size: int, parent: DecoderConfig | None = None) -> Scale:
    """One of the report's models over shards of text."""
    setting = Setting(domains=shards("data/afm", *DOMAINS), vocab_size=vocab_size)
    return Scale(model=with_context(model, max_length=4_096), setting=setting, parent=parent)


def mini() -> Scale:
    """A CPU: rows of 128, 256, 1,024; the base of the last stage by the same formula; the parent's FFN three times as wide."""
    setting = mini_setting(long_characters=2_400)

    def model(ffn_dim: int) -> DecoderConfig:
        return tiny.afm(
            setting.vocab_size, model_dim=96, num_layers=4, q_heads=3, kv_heads=1, head_dim=32, ffn_dim=ffn_dim, max_length=128
        )

    child = model(264)
    theta = child.layer_pattern[0].attention.rope.theta
    return Scale(
        model=child,
        setting=setting,
        parent=model(792),
        batch_tokens=4_096,
        core_tokens=0.9e6,
        mask_tokens=0.2e6,
        continued_tokens=0.35e6,
        lengthening_tokens=0.2e6,
        lengths=(128, 256, 1_024),
        lengthened_theta=round(rope.critical_base(theta, trained_length=256, target_length=1_024)),
        peaks=(0.01, 1e-3),
        warmup_steps=(10, 5, 5),
        mup_base=64,
    )
