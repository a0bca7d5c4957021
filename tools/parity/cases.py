"""The models that are compared: fields of transformers' configs, weights that a name and a shape decide, and one ragged batch.

No library but numpy is needed here, so that the tests can build the very same checkpoints without transformers.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

VOCAB_SIZE, LENGTH, LENGTHS = 61, 24, (24, 15)
PROMPTS = ((5, 17, 3, 44, 9), (60, 2, 31, 31, 8, 12, 40, 7, 7, 19, 23, 50))
NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model.

    Attributes:
      model_type: transformers' name of the family.
      fields: of its config, above `COMMON`.
    """

    model_type: str
    fields: Mapping[str, Any]


COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_THETA = 200.0  # the longest wavelength is a few hundred tokens, so that scaling the frequencies shows within 24


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": _THETA, **options}}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
_MOE = {
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}
_GEMMA = {
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 12,
    "sliding_window": 8,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
    "tie_word_embeddings": True,
}

CASES = {
    "llama": Case("llama", _rope("default")),
    "llama_tied_9_heads_over_3": Case(
        "llama",
        {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 6, "tie_word_embeddings": True}
        | _rope("default"),
    ),
    "llama_llama3_scaling": Case("llama", _LLAMA3),
    "llama_linear_scaling": Case("llama", _rope("linear", factor=2.0)),
    "llama_yarn": Case("llama", _YARN),
    "qwen2_7_heads_a_kv_head": Case(
        "qwen2", {"hidden_size": 28, "num_attention_heads": 7, "num_key_value_heads": 1} | _rope("default")
    ),
    "qwen2_tied_6_heads_a_kv_head": Case(
        "qwen2", {"num_attention_heads": 6, "num_key_value_heads": 1, "tie_word_embeddings": True} | _rope("default")
    ),
    "qwen2_windows_behind_two_layers": Case(
        "qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2} | _rope("default")
    ),
    "qwen2_yarn": Case("qwen2", _YARN),
    "qwen2_moe": Case("qwen2_moe", _MOE | {"norm_topk_prob": False} | _rope("default")),
    "qwen2_moe_normalized": Case("qwen2_moe", _MOE | {"norm_topk_prob": True} | _rope("default")),
    "qwen2_moe_every_other_layer": Case("qwen2_moe", _MOE | {"norm_topk_prob": True, "decoder_sparse_step": 2} | _rope("default")),
    "gemma2": Case("gemma2", _GEMMA | _rope("default")),
}


def weights(name: str, shape: tuple[int, ...], *, unit_offset: bool) -> np.ndarray:
    """Values of a tensor from its name: no bias or gain stands at a value that would hide it.

    Args:
      name: in a Hugging Face checkpoint.
      shape: of the tensor.
      unit_offset: norms store their gain minus one (Gemma).

    Returns:
      float32 of that shape; matrices keep the size of what they multiply.
    """
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("norm.weight"):
        return (0.3 * normal + (0.0 if unit_offset else 1.0)).astype(np.float32)
    if name.endswith("bias"):
        return (0.5 * normal).astype(np.float32)
    return (1.2 * normal / math.sqrt(shape[-1])).astype(np.float32)


def batch() -> tuple[np.ndarray, np.ndarray]:
    """Tokens [2, LENGTH] int32 and which of them count, bool; the second row is padded on the right."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, (len(LENGTHS), LENGTH)).astype(np.int32)
    return tokens, np.arange(LENGTH) < np.asarray(LENGTHS)[:, None]
