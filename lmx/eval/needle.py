"""Needle in a haystack: whether a model finds a fact stated at a given depth of a text of a given length."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lmx.core.types import Array, Outputs, Params
from lmx.data.batches import LMBatch
from lmx.data.recall import Facts, Filler
from lmx.kernels import head
from lmx.losses import likelihood
from lmx.model.decoder import Model
from lmx.tokenizer.protocol import Tokenizer, start_id

_CHARACTERS_PER_TOKEN = 8  # more than any tokenizer packs into a token on average; too little filler is drawn again, longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleTest:
    """Texts that fill the context to the last token: filler, a fact at a depth, filler, the question for it.

    Attributes:
      facts: their wording.
      filler: what surrounds them; a source is read from its split "heldout".
      depths: share of the filler before the fact, in [0, 1].
      samples: texts at each depth.
      distractors: other facts in the filler, so that it takes the key to find the value.
      seed: of the draws.
      batch_size: rows at once.
    """

    facts: Facts = Facts()
    filler: Filler = Filler()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 16
    distractors: int = 0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not self.depths or any(not 0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"depths={self.depths} must be shares in [0, 1], at least one")
        if self.samples < 1 or self.distractors < 0 or self.batch_size < 1:
            raise ValueError(
                f"samples={self.samples} and batch_size={self.batch_size} must be at least 1, distractors={self.distractors} not "
                "negative"
            )

    def rows(self, tokenizer: Tokenizer, *, length: int, depth: float) -> list[LMBatch]:
        """The texts of one depth as rows [T] whose loss mask covers the answer.

        Args:
          tokenizer: of the model.
          length: T, tokens that the model reads; the answer's last token is the last label.
          depth: share of the filler before the fact.

        Raises:
          ValueError: facts and question alone are longer.
        """
        return [self._row(tokenizer, length, depth, index) for index in range(self.samples)]

    def _row(self, tokenizer: Tokenizer, length: int, depth: float, index: int) -> LMBatch:
        generator = random.Random(f"{self.seed}/{length}/{depth}/{index}")
        (key, value), *others = self.facts.draw(generator, 1 + self.distractors)
        stated = [tokenizer.encode(self.facts.state(*fact)) for fact in ((key, value), *others)]
        question, answer = tokenizer.encode("\n" + self.facts.ask(key)), tokenizer.encode(self.facts.reply(value))
        room = length - sum(map(len, stated)) - len(question) - len(answer)
        if room < 0:
            raise ValueError(
                f"length={length} has no room for {len(stated)} facts, the question and the answer, which take {length - room} "
                "tokens; test longer texts or fewer distractors"
            )
        filler = self._filler(tokenizer, generator, room)
        places = [round(depth * room), *(generator.randint(0, room) for _ in others)]
        ids = [start_id(tokenizer)]
        start = 0
        for place, fact in sorted(zip(places, stated, strict=True), key=lambda item: item[0]):
            ids += filler[start:place] + fact
            start = place
        ids += filler[start:] + question + answer
        return _row(np.array(ids, np.int32), len(answer))

    def _filler(self, tokenizer: Tokenizer, generator: random.Random, room: int) -> list[int]:
        size = room * _CHARACTERS_PER_TOKEN
        while True:
            ids = tokenizer.encode(self.filler.draw(generator, max(size, 1), "heldout"))
            if len(ids) >= room:
                return ids[:room]
            size *= 2


@dataclasses.dataclass(frozen=True)
class NeedleScore:
    """How many facts were found.

    Attributes:
      length: tokens of the texts.
      hits: by depth, texts whose whole answer was right.
      samples: texts at each depth.
    """

    length: int
    hits: dict[float, int]
    samples: int

    @property
    def accuracy(self) -> float:
        """Share of all texts answered exactly."""
        return sum(self.hits.values()) / (self.samples * len(self.hits))


def find_needles(test: NeedleTest, model: Model, params: Params, tokenizer: Tokenizer, *, length: int) -> NeedleScore:
    """Runs the test at one length.

    Args:
      test: the texts.
      model: a language model that takes `length` tokens.
      params: its parameters.
      tokenizer: its tokenizer.
      length: T.
    """
    hits: dict[float, int] = {}
    for depth in test.depths:
        rows = test.rows(tokenizer, length=length, depth=depth)
        found = [exact_matches(model, params, batch) for batch in _batches(rows, test.batch_size)]
        hits[depth] = int(np.concatenate([np.asarray(part) for part in found])[: len(rows)].sum())
    return NeedleScore(length, hits, test.samples)


def exact_matches(model: Model, params: Params, batch: LMBatch) -> Array:
    """[B] bool, whether greedy decoding would write every label under the loss mask, one after the other.

    One forward pass with the right answer in place tells: up to the first token that greedy decoding gets wrong it has written that
    very answer, so the two agree (a tie for the most likely token counts as right).
    """
    return _exact_matches(params, batch, apply=model.apply)


@partial(jax.jit, static_argnames="apply")
def _exact_matches(params: Params, batch: LMBatch, *, apply: Callable[[Params, LMBatch], Outputs]) -> Array:
    hits = head.token_loss(apply(params, batch), partial(likelihood.top1_hits, labels=batch.labels))  # [B, T]
    return jnp.all((hits > 0) | ~batch.loss_mask, axis=-1) & jnp.any(batch.loss_mask, axis=-1)


def _row(ids: np.ndarray, answer_size: int) -> LMBatch:
    length = len(ids) - 1
    places = np.arange(length, dtype=np.int32)
    ones = np.ones(length, np.int32)
    return LMBatch(ids[:-1], ids[1:], places >= length - answer_size, ones, places)  # type: ignore[arg-type]


def _batches(rows: Sequence[LMBatch], batch_size: int) -> Iterator[LMBatch]:
    """Rows stacked, the last batch filled with its last row, so that all have one shape."""
    size = min(batch_size, len(rows))
    for start in range(0, len(rows), size):
        part = list(rows[start : start + size])
        part += part[-1:] * (size - len(part))
        yield jax.tree.map(lambda *leaves: np.stack(leaves), *part)
