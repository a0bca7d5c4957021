"""Gemma 2's pre-training: the 27B from labels, the 9B and the 2B from a teacher's whole distribution instead.

Source: Gemma Team (2024), arXiv:2408.00118, sections 2, 3 and 5. One stage, 8,192 tokens throughout. Published are the tokens, the
objective and the layout of chips; optimizer, learning rate, batch, mixture and the teacher's identity are not.
"""

import dataclasses
from collections.abc import Mapping

from configs.data.domains import mixture, shards
from configs.models import tiny
from configs.recipes.parts import Figures, Recipe, Setting, mini_setting, steps_of
from lmx.data.text import PackedText
from lmx.model.config import DecoderConfig
from lmx.optim import AdamW, WarmupCosine
from lmx.pipeline.stage import Ref, Stage
from lmx.stages import Distill, ForwardKL, Pretrain, Training

DOMAINS = ("web", "code", "maths")
MIXTURE = {"web": 75.0, "code": 15.0, "maths": 10.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """One of the models.

    Attributes:
      model: its architecture.
      tokens: that it trains on.
      rows: of a batch, a multiple of the data shards.
      peak: learning rate.
    """

    model: DecoderConfig
    tokens: float
    rows: int
    peak: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """What the recipe is run at.

    Attributes:
      teacher: trained from labels; teaches the students.
      students: by name.
      setting: text, vocabulary, precision.
      length: of the rows.
      warmup_steps: of the learning rate.
    """

    teacher: Size
    students: Mapping[str, Size] = dataclasses.field(default_factory=dict)
    setting: Setting
    length: int = 8_192
    warmup_steps: int = 2_000


def pretraining(scale: Scale) -> Recipe:
    """The largest model from labels, the others from its distribution: no label, temperature 1."""
    at = scale
    stages: dict[str, Stage] = dict(
        tokenizer=at.setting.tokenizer(*DOMAINS),
        teacher=Pretrain(
            model=at.teacher.model, tokenizer=Ref("tokenizer"), data=text_mixture(at), training=_training(at, at.teacher)
        ),
    )
    for name, size in at.students.items():
        stages[name] = Distill(
            student=size.model,
            teacher=Ref("teacher"),
            data=text_mixture(at),
            training=_training(at, size),
            target=ForwardKL(alpha=1.0, temperature=1.0),
        )
    return Recipe(stages=stages, figures=_figures(at))


def text_mixture(at: Scale) -> PackedText:
    """Web, code and science, mainly English."""
    return mixture(at.setting.domains, MIXTURE)


def _training(at: Scale, size: Size) -> Training:
    """AdamW and a cosine to a tenth: nothing of it is published."""
    schedule = WarmupCosine(peak=size.peak, warmup_steps=at.warmup_steps, end_ratio=0.1)
    return Training(
        loop=at.setting.loop(steps_of(size.tokens, size.rows * at.length)),
        optimizer=AdamW(schedule=schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1),
        batch_size=size.rows,
        length=at.length,
        clip_norm=1.0,
        precision=at.setting.precision,
        remat=at.setting.remat,
    )


def _figures(at: Scale) -> dict[str, Figures]:
    """Where the numbers come from."""
    choices = {
        "rate": "not published; a cosine to a tenth of the peak",
        "optimizer": "not published",
        "batch": "not published; a multiple of the data shards",
        "mixture": "shares are not published; mainly English web, code and science articles",
    }
    teacher = at.setting.figures(report="tokens, length, objective", code="RoPE base", choice=choices)
    student = at.setting.figures(
        report="tokens, length, objective",
        code="RoPE base",
        choice={
            **choices,
            "teacher": "not named in the report; here the 27B",
            "how": "the teacher runs in the step; whether its outputs were stored or sampled is not published",
        },
    )
    tokenizer = at.setting.figures(report="pieces, SentencePiece with split digits and byte fallback")
    return {"tokenizer": tokenizer, "teacher": teacher} | dict.fromkeys(at.students, student)


def paper(teacher: Size, students: Mapping[str, Size] | None = None) -> Scale:
    """The report's sizes over shards of text."""
    setting = Setting(domains=shards("data/gemma2", *DOMAINS), vocab_size=256_000)
    return Scale(teacher=teacher, students=students or {}, setting=setting)


def mini() -> Scale:
    """A CPU: rows of 256, local windows of 128; a teacher of about three times its student's size, as 27B to 9B."""
    setting = mini_setting(long_characters=1_000)
    length = 256

    def model(model_dim: int, num_layers: int, heads: int, ffn_dim: int) -> DecoderConfig:
        return tiny.gemma2(
            setting.vocab_size,
            model_dim=model_dim,
            num_layers=num_layers,
            q_heads=heads,
            kv_heads=heads // 2,
            head_dim=32,
            ffn_dim=ffn_dim,
            window=length // 2,
            max_length=length,
        )

    return Scale(
        teacher=Size(model=model(160, 6, 6, 432), tokens=0.98e6, rows=16, peak=3e-3),
        students={
            "student_9b": Size(model=model(96, 4, 4, 264), tokens=0.6e6, rows=16, peak=3e-3),
            "student_2b": Size(model=model(48, 4, 2, 132), tokens=0.15e6, rows=8, peak=4e-3),
        },
        setting=setting,
        length=length,
        warmup_steps=10,
    )
