"""From scores to what stays: the highest of each axis, with heads in their groups and layers in their pattern."""

import dataclasses

import numpy as np

from lmx.model.config import DecoderConfig, FFNConfig
from lmx.pruning.cut import Keep


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What each part is worth, higher = more; only the order matters, and only within what is compared.

    Attributes:
      embed: [D] channels of the residual stream, compared with each other.
      q_heads: for each place of the layer pattern, [R, N], compared within a layer.
      kv_heads: for each place, [R, K], likewise.
      ffn: for each place, [R, F], likewise; None for a mixture of experts.
      layers: [L], compared with each other (layers of one place with each other, where the pattern has several); None = unknown.
    """

    embed: np.ndarray
    q_heads: tuple[np.ndarray, ...]
    kv_heads: tuple[np.ndarray, ...]
    ffn: tuple[np.ndarray | None, ...]
    layers: np.ndarray | None = None

    def times(self, other: "Scores") -> "Scores":
        """The product of both, part by part; layers as the one says that knows them."""

        def pairs(a: tuple, b: tuple) -> tuple:
            return tuple(None if x is None else x * y for x, y in zip(a, b, strict=True))

        return Scores(
            embed=self.embed * other.embed,
            q_heads=pairs(self.q_heads, other.q_heads),
            kv_heads=pairs(self.kv_heads, other.kv_heads),
            ffn=pairs(self.ffn, other.ffn),
            layers=self.layers if other.layers is None else other.layers,
        )


def choose(scores: Scores, source: DecoderConfig, target: DecoderConfig) -> Keep:
    """Keeps what has the highest scores; ties go to the lower id.

    Args:
      scores: of the source's parts.
      source: the parent's architecture.
      target: the child's, checked by `check_target`.

    Raises:
      ValueError: layers must go but nothing tells which.
    """
    q_heads, kv_heads, ffn = [], [], []
    for place, (old, new) in enumerate(zip(source.layer_pattern, target.layer_pattern, strict=True)):
        queries, keys = choose_heads(
            scores.q_heads[place], scores.kv_heads[place], q_heads=new.attention.q_heads, kv_heads=new.attention.kv_heads
        )
        q_heads.append(queries)
        kv_heads.append(keys)
        units = scores.ffn[place]
        width = new.ffn.ffn_dim if isinstance(new.ffn, FFNConfig) and new.ffn != old.ffn else None
        ffn.append(None if units is None or width is None else highest(units, width))
    layers = None
    if target.num_layers < source.num_layers:
        if scores.layers is None:
            raise ValueError(
                f"{source.num_layers - target.num_layers} of {source.num_layers} layers must go, but weights don't tell which; "
                "score by activations too"
            )
        layers = choose_layers(scores.layers, target.num_layers, len(source.layer_pattern))
    embed = highest(scores.embed, target.model_dim) if target.model_dim < source.model_dim else None
    return Keep(layers=layers, embed=embed, q_heads=tuple(q_heads), kv_heads=tuple(kv_heads), ffn=tuple(ffn))


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """[..., count] ids of the highest scores along the last axis, in ascending order."""
    order = np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")
    return np.sort(order[..., :count], axis=-1).astype(np.int32)


def choose_heads(q_scores: np.ndarray, kv_scores: np.ndarray, *, q_heads: int, kv_heads: int) -> tuple[np.ndarray, np.ndarray]:
    """KV heads by their own scores, then in each kept group the same number of query heads by theirs.

    Args:
      q_scores: [R, N]; query head a reads KV head a // (N / K).
      kv_scores: [R, K].
      q_heads: N', a multiple of K'.
      kv_heads: K'.

    Returns:
      [R, N'] query heads, those of one KV head together, and [R, K'] KV heads.
    """
    repeats, total = kv_scores.shape
    group = q_scores.shape[1] // total
    keys = highest(kv_scores, kv_heads)  # [R, K']
    grouped = np.take_along_axis(q_scores.reshape(repeats, total, group), keys[:, :, None], axis=1)  # [R, K', G]
    inside = highest(grouped, q_heads // kv_heads)  # [R, K', G']
    return (keys[:, :, None] * group + inside).reshape(repeats, q_heads).astype(np.int32), keys


def choose_layers(scores: np.ndarray, count: int, places: int) -> np.ndarray:
    """The `count` layers of the highest total score that keep the pattern: kept layer j stood at a place of the same kind.

    With one place that is the highest `count`. With more, local and global layers say, the kept layers must still alternate; the
    best such choice is found by dynamic programming over (layer, how many are kept).

    Args:
      scores: [L].
      count: L', a multiple of `places`.
      places: P, blocks of the layer pattern.

    Returns:
      [L'] layer numbers, ascending.
    """
    total = len(scores)
    best = np.full((total + 1, count + 1), -np.inf)  # [i, j]: of the first i layers, j kept
    best[:, 0] = 0.0
    for i in range(1, total + 1):
        for j in range(1, min(i, count) + 1):
            takes = best[i - 1, j - 1] + scores[i - 1] if (i - 1) % places == (j - 1) % places else -np.inf
            best[i, j] = max(best[i - 1, j], takes)
    kept, j = [], count
    for i in range(total, 0, -1):
        if j and best[i, j] != best[i - 1, j]:
            kept.append(i - 1)
            j -= 1
    return np.array(kept[::-1], np.int32)
