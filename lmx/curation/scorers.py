"""Quality scores from an lmx model with a scalar head. The only part of curation that loads jax, with `writers`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import lmx
from lmx.core.types import Array, Outputs, Params
from lmx.model.config import ScalarHead
from lmx.pipeline.artifact import LoadedModel
from lmx.sampling import padding

_CHARACTERS_A_TOKEN = 16  # a text is cut to this many times `max_tokens` before it is tokenized


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelScorer:
    """Scores texts with a reward model: the scalar head at the end-of-text token behind the text.

    In the place of the DistilRoberta scorers of Llama 3.1. Rows are padded to power-of-two lengths and batches to `batch` rows, so
    a text's score depends on that text alone, to the last bit.

    Attributes:
      path: artifact of a model with a scalar head; every worker must be able to read it.
      max_tokens: of a text that are read.
      batch: rows at once.
    """

    path: str
    max_tokens: int = 512
    batch: int = 8

    def __post_init__(self) -> None:
        if self.max_tokens < 2 or self.batch < 1:
            raise ValueError(f"ModelScorer(max_tokens={self.max_tokens}, batch={self.batch}): at least 2 and 1")

    def open(self) -> Callable[[Sequence[str]], list[float]]:
        """As `Scorer.open`.

        Raises:
          ValueError: the artifact holds no model with a scalar head, or the model is shorter than `max_tokens`.
        """
        loaded = _loaded(self.path)
        config = loaded.model.config
        if not isinstance(config.head, ScalarHead):
            raise ValueError(
                f"{self.path} holds a language model; a scorer needs a scalar head, as the stage RewardModel trains it"
            )
        if config.max_length < self.max_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} is more than the max_length={config.max_length} of the model in {self.path}"
            )
        return functools.partial(_score, loaded, max_tokens=self.max_tokens, batch=self.batch)


@functools.lru_cache(maxsize=2)
def _loaded(path: str) -> LoadedModel:
    loaded: LoadedModel = lmx.load(path)
    return loaded


def _score(loaded: LoadedModel, texts: Sequence[str], *, max_tokens: int, batch: int) -> list[float]:
    tokenizer = loaded.tokenizer
    prefix = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    rows = []
    for text in texts:
        ids = [*prefix, *tokenizer.encode(text[: max_tokens * _CHARACTERS_A_TOKEN])][: max_tokens - 1]
        rows.append([*ids, tokenizer.eos_id])
    scores = np.zeros(len(rows))
    for length, members in padding.groups_by_length([len(row) for row in rows], max_length=max_tokens, batch_size=batch):
        tokens, lengths = padding.pad_rows([rows[index] for index in members], rows=batch, length=length, pad_id=tokenizer.pad_id)
        found = _last_scores(
            loaded.params,
            padding.right_padded(jnp.asarray(tokens), jnp.asarray(lengths)),
            jnp.asarray(lengths),
            apply=loaded.model.apply,
        )
        scores[members] = np.asarray(found)[: len(members)]
    return scores.tolist()


@functools.partial(jax.jit, static_argnames="apply")
def _last_scores(params: Params, batch: padding.Tokens, lengths: Array, *, apply: Callable[..., Outputs]) -> Array:
    """[B] float32, the scalar head at each row's last token."""
    outputs = apply(params, batch)
    last = jnp.maximum(lengths - 1, 0)
    hidden = jnp.take_along_axis(outputs.hidden, last[:, None, None], axis=1)[:, 0].astype(jnp.float32)  # [B, D]
    return hidden @ outputs.head[0].astype(jnp.float32)
