"""Rotary projections whose pairs are neighbours (2i, 2i + 1), as Meta and llama.cpp store llamas; lmx keeps (i, i + H / 2)."""

import numpy as np

from lmx.convert.rules import Layout, Shape


def _kernel_to_lmx(weight: np.ndarray, shape: Shape) -> np.ndarray:
    model_dim, heads, head_dim = shape
    pairs = weight.reshape(heads, head_dim // 2, 2, model_dim)
    return pairs.transpose(3, 0, 2, 1).reshape(shape)


def _kernel_to_foreign(kernel: np.ndarray) -> np.ndarray:
    model_dim, heads, head_dim = kernel.shape
    halves = kernel.reshape(model_dim, heads, 2, head_dim // 2)
    return halves.transpose(1, 3, 2, 0).reshape(heads * head_dim, model_dim)


def _bias_to_lmx(bias: np.ndarray, shape: Shape) -> np.ndarray:
    heads, head_dim = shape
    return bias.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(shape)


def _bias_to_foreign(bias: np.ndarray) -> np.ndarray:
    heads, head_dim = bias.shape
    return bias.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(heads * head_dim)


KERNEL = Layout(to_lmx=_kernel_to_lmx, to_foreign=_kernel_to_foreign)
"""Kernels [D, N, H] of queries and keys as [N * H, D]."""
BIAS = Layout(to_lmx=_bias_to_lmx, to_foreign=_bias_to_foreign)
"""Their biases [N, H] as [N * H]."""
