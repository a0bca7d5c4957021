"""Grouped-query causal attention with windows, soft caps and segments."""

from lmx.kernels.attention.api import MIN_CHUNKED_LENGTH, AttentionFn, attention, attention_with_lse
from lmx.kernels.attention.merge import merge_parts

__all__ = ["MIN_CHUNKED_LENGTH", "AttentionFn", "attention", "attention_with_lse", "merge_parts"]
