"""Grouped-query causal attention with windows, soft caps and segments."""

from lmx.kernels.attention.api import AttentionFn, attention, attention_with_lse

__all__ = ["AttentionFn", "attention", "attention_with_lse"]
