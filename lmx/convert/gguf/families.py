"""Names of llama.cpp's tensors for the families that lmx reads and writes, and how their numbers lie.

Queries and keys: llama.cpp rotates neighbouring pairs in its `llama` architecture and half-split pairs, as lmx does, in the others.

Norms of Gemma: llama.cpp stores g = 1 + w in float32, lmx w. Both directions compute in float32, and lmx's norm multiplies by
1 + w rounded to float32, which is g: what is written is the very multiplier that lmx uses. Read back, w' = g - 1 is exact for g in
[0.5, 2^24], and then 1 + w' is g again bit by bit. So the outputs of lmx -> GGUF -> lmx are the same in every bit; w' itself is w
wherever 1 + w was exact, as it is for every bfloat16 w of magnitude 2^-16 or more, and else within 2^-24 of it. A file from
elsewhere with g below 0.5 comes through with 1 + w' within 2^-25 of g.
"""

import numpy as np

from lmx.convert import interleaved
from lmx.convert.rules import FLAT, IDENTITY, LINEAR, LINEAR_FROM_HEADS, Entry, Layout


def _plus_one(gain: np.ndarray) -> np.ndarray:
    return gain.astype(np.float32) + np.float32(1)


ONE_PLUS = Layout(to_lmx=lambda gain, shape: (gain.astype(np.float32) - np.float32(1)).reshape(shape), to_foreign=_plus_one)
"""Gains w as 1 + w, float32."""


def _table(query_key: Layout, bias: Layout, norm: Layout) -> tuple[Entry, ...]:
    return (
        Entry("embed/table", "token_embd.weight"),
        Entry("final_norm/gain", "output_norm.weight", norm),
        Entry("head/table", "output.weight"),
        Entry("attention_norm/gain", "blk.{layer}.attn_norm.weight", norm),
        Entry("attention/q/kernel", "blk.{layer}.attn_q.weight", query_key),
        Entry("attention/q/bias", "blk.{layer}.attn_q.bias", bias),
        Entry("attention/k/kernel", "blk.{layer}.attn_k.weight", query_key),
        Entry("attention/k/bias", "blk.{layer}.attn_k.bias", bias),
        Entry("attention/v/kernel", "blk.{layer}.attn_v.weight", LINEAR),
        Entry("attention/v/bias", "blk.{layer}.attn_v.bias", FLAT),
        Entry("attention/o/kernel", "blk.{layer}.attn_output.weight", LINEAR_FROM_HEADS),
        Entry("attention_post_norm/gain", "blk.{layer}.post_attention_norm.weight", norm),
        Entry("ffn_norm/gain", "blk.{layer}.ffn_norm.weight", norm),
        Entry("ffn/gate/kernel", "blk.{layer}.ffn_gate.weight", LINEAR),
        Entry("ffn/up/kernel", "blk.{layer}.ffn_up.weight", LINEAR),
        Entry("ffn/down/kernel", "blk.{layer}.ffn_down.weight", LINEAR),
        Entry("ffn_post_norm/gain", "blk.{layer}.post_ffw_norm.weight", norm),
    )


TABLES = {
    "llama": _table(interleaved.KERNEL, interleaved.BIAS, IDENTITY),
    "qwen2": _table(LINEAR, FLAT, IDENTITY),
    "gemma2": _table(LINEAR, FLAT, ONE_PLUS),
}
"""llama.cpp's architecture -> names. What an architecture does not have (post-norms of a llama) its config rules out."""
ROPE_DIVISORS = "rope_freqs.weight"
"""[H / 2] float32, what Llama 3.1's scaling divides each frequency by; llama.cpp applies it in its `llama` architecture only."""
