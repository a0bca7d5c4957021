"""Meta's params.json as a decoder's config."""

from collections.abc import Mapping

from lmx.convert.families.fields import Fields
from lmx.convert.meta.shards import EMBEDDING, OUTPUT
from lmx.convert.source import ConversionError, TensorInfo
from lmx.model.activation import silu
from lmx.model.config import (
    AttentionConfig,
    BlockConfig,
    DecoderConfig,
    FFNConfig,
    LinearHead,
    Llama3Scaling,
    NormConfig,
    RopeConfig,
    TiedHead,
)

_HARMLESS = frozenset({"max_batch_size", "model_parallel_size"})
_FACTORS = ("rope_scaling_factor",), ("rope_high_freq_factor", "high_freq_factor")
_LLAMA_3_2 = {(2_048, 16), (3_072, 28)}  # (width, depth) of the text models; their params.json says only use_scaled_rope


def read_config(fields: Fields, tensors: Mapping[str, TensorInfo], tied: bool) -> tuple[DecoderConfig, tuple[str, ...]]:
    """The model that params.json describes, and sentences about what it leaves open.

    Args:
      fields: of params.json.
      tensors: of the checkpoint: Llama 2 leaves the vocabulary's size to them.
      tied: the output table is the embedding.

    Raises:
      ConversionError: a mechanism that lmx does not have, or sizes that the tensors contradict.
    """
    try:
        return _read(fields, tensors, tied)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{fields.where}: {error}") from error


def _read(fields: Fields, tensors: Mapping[str, TensorInfo], tied: bool) -> tuple[DecoderConfig, tuple[str, ...]]:
    model_dim, num_layers, heads = fields.size("dim"), fields.size("n_layers"), fields.size("n_heads")
    rope, rope_notes = _rope(fields, model_dim, num_layers)
    attention = AttentionConfig(
        q_heads=heads,
        kv_heads=fields.size("n_kv_heads", heads),
        head_dim=fields.size("head_dim", max(1, model_dim // heads)),
        rope=rope,
    )
    ffn_dim = _ffn_dim(fields, model_dim)
    _check_sizes(fields, attention, model_dim, ffn_dim, num_layers, tensors)
    norm = NormConfig(eps=fields.number("norm_eps"))
    block = BlockConfig(attention=attention, ffn=FFNConfig(ffn_dim=ffn_dim, activation=silu), norm=norm)
    max_length, length_notes = _max_length(fields, rope)
    config = DecoderConfig(
        vocab_size=_vocab_size(fields, tensors),
        model_dim=model_dim,
        num_layers=num_layers,
        layer_pattern=(block,),
        final_norm=norm,
        head=TiedHead() if tied or OUTPUT not in tensors else LinearHead(),
        max_length=max_length,
    )
    return config, (*rope_notes, *length_notes, *fields.finish(_HARMLESS))


def _rope(fields: Fields, model_dim: int, num_layers: int) -> tuple[RopeConfig, tuple[str, ...]]:
    theta = fields.number("rope_theta", 10_000.0)
    factor, high = (next((found for name in names if (found := fields.optional_number(name))), None) for names in _FACTORS)
    for name in (name for names in _FACTORS for name in names):
        fields.raw(name)
    if not fields.flag("use_scaled_rope", False):
        return RopeConfig(theta=theta), ()
    notes: tuple[str, ...] = ()
    if factor is None:
        factor = 32.0 if (model_dim, num_layers) in _LLAMA_3_2 else 8.0
        release = "3.2" if factor > 8 else "3.1"
        notes = (
            f"{fields.where} does not say by which factor RoPE is scaled; a model of its size takes Llama {release}'s, {factor:g}",
        )
    return RopeConfig(theta=theta, scaling=Llama3Scaling(factor=factor, high_frequency_factor=high or 4.0)), notes


def _ffn_dim(fields: Fields, model_dim: int) -> int:
    """F: two thirds of four widths, times the multiplier, rounded up."""
    multiplier, multiple_of = fields.optional_number("ffn_dim_multiplier"), fields.size("multiple_of", 256)
    if fields.has("hidden_dim"):
        return fields.size("hidden_dim")
    ffn_dim = int(2 * (4 * model_dim) / 3)
    if multiplier is not None:
        ffn_dim = int(multiplier * ffn_dim)
    return -(-ffn_dim // multiple_of) * multiple_of


def _max_length(fields: Fields, rope: RopeConfig) -> tuple[int, tuple[str, ...]]:
    """Longest sequence, which the file seldom says: it is told by what the releases have in common."""
    if fields.has("max_seq_len"):
        return fields.size("max_seq_len"), ()
    if rope.scaling is not None:
        length, release = 131_072, "Llama 3.1 and 3.2"
    elif rope.theta >= 1_000_000:
        length, release = 16_384, "Code Llama"
    elif rope.theta >= 500_000:
        length, release = 8_192, "Llama 3"
    else:
        length, release = 4_096, "Llama 2"
    return length, (
        f"{fields.where} does not say how long sequences may be; its RoPE is that of {release}, so max_length={length:,}",
    )


def _vocab_size(fields: Fields, tensors: Mapping[str, TensorInfo]) -> int:
    rows = tensors[EMBEDDING].shape[0]
    stated = fields.raw("vocab_size", -1)  # -1 in Llama 2, whose code asked the tokenizer
    if stated != -1 and fields.size("vocab_size") != rows:
        fields.fail(f"says vocab_size={stated:,}, but {EMBEDDING} has {rows:,} rows")
    return rows


def _check_sizes(
    fields: Fields, attention: AttentionConfig, model_dim: int, ffn_dim: int, num_layers: int, tensors: Mapping[str, TensorInfo]
) -> None:
    """Sizes against the tensors of the first layer, before anything is made that grows with them."""
    table = tensors.get(EMBEDDING)
    if table is None or len(table.shape) != 2:
        fields.fail(f"has a checkpoint without {EMBEDDING}; lmx reads Meta's dense Llama models")
    expected = {
        EMBEDDING: (table.shape[0], model_dim),
        "layers.0.attention.wq.weight": (attention.q_heads * attention.head_dim, model_dim),
        "layers.0.attention.wk.weight": (attention.kv_heads * attention.head_dim, model_dim),
        "layers.0.feed_forward.w1.weight": (ffn_dim, model_dim),
    }
    for name, shape in expected.items():
        found = tensors[name].shape if name in tensors else "no such tensor"
        if found != shape:
            fields.fail(f"describes {name} of the shape {shape}, but the checkpoint has {found}")
    if num_layers > len(tensors):
        fields.fail(f"says n_layers={num_layers:,}, but the checkpoint holds only {len(tensors):,} tensors")
