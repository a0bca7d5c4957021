"""What turns hidden states into outputs: the output table and its soft cap, never the logits."""

from flax import linen as nn

from lmx.core.types import Array, Precision
from lmx.model.config import DecoderConfig, LinearHead, ScalarHead, TiedHead
from lmx.model.embedding import Table


class Head(nn.Module):
    """The output table of a decoder: the embedding's own when tied, else one of V rows, or one of 1 row (scalar).

    Attributes:
      config: the decoder's.
      precision: dtypes.
    """

    config: DecoderConfig
    precision: Precision

    @nn.compact
    def __call__(self, embedding_table: Array) -> Array:
        """Embedding table [V, D] -> output table [V, D] or [1, D], in the parameters' dtype."""
        config = self.config
        if isinstance(config.head, TiedHead):
            return embedding_table
        rows, axis = (1, None) if isinstance(config.head, ScalarHead) else (config.vocab_size, "vocab")
        table = Table(rows, config.model_dim, axis, self.precision, config.init_std)
        nn.share_scope(self, table)
        return table()


def head_soft_cap(config: DecoderConfig) -> float | None:
    """c of `c * tanh(x / c)` on the logits, None where the head has none."""
    return config.head.soft_cap if isinstance(config.head, TiedHead | LinearHead) else None
