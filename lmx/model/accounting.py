"""Parameters, FLOPs and cache sizes of a decoder, by formula: no arrays."""

import dataclasses

from lmx.model.config import AttentionConfig, BlockConfig, DecoderConfig, FFNConfig, LinearHead, MoEConfig, ScalarHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters of a decoder by part.

    Attributes:
      embedding: the input table.
      head: the output table, 0 when tied.
      attention: projections and their biases, all layers.
      ffn: feed-forward layers, or routers, experts, shared experts and their gates.
      norms: gains, those of QK-norm and the final norm included.
      inactive: experts that a token does not use, already counted in `ffn`.
    """

    embedding: int
    head: int
    attention: int
    ffn: int
    norms: int
    inactive: int

    @property
    def total(self) -> int:
        """All parameters, a tied table counted once."""
        return self.embedding + self.head + self.non_embedding

    @property
    def non_embedding(self) -> int:
        """All parameters but the input and output tables."""
        return self.attention + self.ffn + self.norms

    @property
    def active(self) -> int:
        """Parameters that one token uses: of the experts only its k; the tables are counted whole."""
        return self.total - self.inactive


def count_parameters(config: DecoderConfig) -> ParameterCount:
    """Exact counts; `total` equals `Model.num_params()`."""
    dim, repeats = config.model_dim, config.num_repeats
    head_rows = config.vocab_size if isinstance(config.head, LinearHead) else int(isinstance(config.head, ScalarHead))
    return ParameterCount(
        embedding=config.vocab_size * dim,
        head=head_rows * dim,
        attention=repeats * sum(attention_parameters(block.attention, dim) for block in config.layer_pattern),
        ffn=repeats * sum(ffn_parameters(block.ffn, dim) for block in config.layer_pattern),
        norms=repeats * sum(norm_parameters(block, dim) for block in config.layer_pattern) + dim,
        inactive=repeats * sum(inactive_parameters(block.ffn, dim) for block in config.layer_pattern),
    )


def attention_parameters(config: AttentionConfig, model_dim: int) -> int:
    """Of one layer: `2 D N H + 2 D K H`, and `N H + 2 K H` biases."""
    q, kv = config.q_heads * config.head_dim, config.kv_heads * config.head_dim
    return 2 * model_dim * (q + kv) + (q + 2 * kv) * config.qkv_bias


def ffn_parameters(config: FFNConfig | MoEConfig, model_dim: int) -> int:
    """Of one layer: `3 D F`; for experts `D E + 3 D F E`, and `3 D F + D` for a shared expert and its gate."""
    if isinstance(config, FFNConfig):
        return 3 * model_dim * config.ffn_dim
    routed = model_dim * config.num_experts + config.num_experts * ffn_parameters(config.expert, model_dim)
    return routed + (0 if config.shared is None else ffn_parameters(config.shared, model_dim) + model_dim)


def inactive_parameters(config: FFNConfig | MoEConfig, model_dim: int) -> int:
    """Of one layer: the E - k experts that a token does not use."""
    if isinstance(config, FFNConfig):
        return 0
    return (config.num_experts - config.experts_per_token) * ffn_parameters(config.expert, model_dim)


def norm_parameters(config: BlockConfig, model_dim: int) -> int:
    """Of one layer: 2 D gains, 4 D with post-norms, and 2 H with QK-norm."""
    qk_gains = 0 if config.attention.qk_norm is None else 2 * config.attention.head_dim
    return (4 if config.post_norms else 2) * model_dim + qk_gains


def flops_per_token(config: DecoderConfig, length: int, *, training: bool) -> float:
    """Floating-point operations of the model's matrix products, a token, averaged over a row of `length` tokens.

    Forward, `2 M + sum over layers of 4 N H s`: M counts the parameters in matrix products that a token uses (active experts,
    and the output head though tied, but no norms, biases or input table); 4 N H s are scores and values over the s visible keys,
    averaged over the row: (length + 1) / 2, less where a window cuts. Training is three times that, the known `6 M` plus
    attention; recomputation under remat is not counted, so the rate it gives is model FLOPs utilisation.

    Args:
      config: the decoder's.
      length: tokens a row, one document.
      training: forward and backward, else forward alone.

    Reference: Chowdhery et al. (2022), arXiv:2204.02311, Appendix B; here masked-out keys are not counted.
    """
    dim = config.model_dim
    forward = 2.0 * dim * (1 if isinstance(config.head, ScalarHead) else config.vocab_size)
    for block in config.layer_pattern:
        attention = dataclasses.replace(block.attention, qkv_bias=False)
        matrices = attention_parameters(attention, dim) + ffn_parameters(block.ffn, dim) - inactive_parameters(block.ffn, dim)
        scores = 4.0 * attention.q_heads * attention.head_dim * mean_visible_keys(length, attention.window)
        forward += config.num_repeats * (2.0 * matrices + scores)
    return 3.0 * forward if training else forward


def mean_visible_keys(length: int, window: int | None) -> float:
    """Mean of min(i + 1, window) over the tokens i of a document."""
    span = length if window is None else min(window, length)
    return (span * (span + 1) / 2 + (length - span) * span) / length


def cache_elements_per_token(config: DecoderConfig) -> int:
    """Key and value elements that a token adds while every window still has room: `2 K H` a layer."""
    return config.num_repeats * sum(2 * block.attention.kv_heads * block.attention.head_dim for block in config.layer_pattern)


def cache_elements(config: DecoderConfig, length: int) -> int:
    """Key and value elements of a row of `length` tokens, windowed layers holding at most their window."""
    attentions = [block.attention for block in config.layer_pattern]
    spans = [length if attention.window is None else min(attention.window, length) for attention in attentions]
    return config.num_repeats * sum(2 * a.kv_heads * a.head_dim * span for a, span in zip(attentions, spans, strict=True))


def cache_bytes(config: DecoderConfig, length: int, *, batch_size: int = 1, element_bytes: int = 2) -> int:
    """Bytes of the keys and values of a cache; `element_bytes` is 2 for bfloat16."""
    return batch_size * element_bytes * cache_elements(config, length)
