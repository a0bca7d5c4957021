"""Every family against a naive forward pass in NumPy float64, written from the papers' formulas and sharing no code with lmx."""

import math

import numpy as np

from lmx.model.config import MoEConfig


def _norm(x, gain, config):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.eps) * (gain + 1 if config.unit_offset else gain)


def _frequency(pair, head_dim, config):
    w = config.theta ** (-2 * pair / head_dim)
    if config.scaling is None:
        return w
    s, wavelength = config.scaling, 2 * math.pi / w
    if wavelength < s.original_length / s.high_frequency_factor:
        return w
    if wavelength > s.original_length / s.low_frequency_factor:
        return w / s.factor
    blend = s.original_length / wavelength - s.low_frequency_factor
    blend /= s.high_frequency_factor - s.low_frequency_factor
    return (1 - blend) * w / s.factor + blend * w


def _rotate(vector, position, config):
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * _frequency(i, len(vector), config)
        out[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
        out[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
    return out


def _heads(x, params, position, config, norm):
    """Projected heads of one token, rotated and normed where asked: [heads, H]."""
    heads = np.einsum("d,dnh->nh", x, params["kernel"]) + params.get("bias", 0)
    if position is not None:
        heads = np.stack([_rotate(head, position, config.rope) for head in heads])
    return heads if norm is None else _norm(heads, norm["gain"], config.qk_norm)


def _attention(x, params, segments, positions, config):
    """One row [T, D], token by token and head by head; rows of padding stay 0."""
    out = np.zeros_like(x)
    q = [_heads(t, params["q"], p, config, params.get("q_norm")) for t, p in zip(x, positions, strict=True)]
    k = [_heads(t, params["k"], p, config, params.get("k_norm")) for t, p in zip(x, positions, strict=True)]
    v = [_heads(t, params["v"], None, config, None) for t in x]
    scale = 1 / math.sqrt(config.head_dim) if config.scale is None else config.scale
    for i in range(len(x)):
        window = math.inf if config.window is None else config.window
        keys = [j for j in range(i + 1) if segments[j] == segments[i] > 0 and positions[i] - positions[j] < window]
        for n in range(config.q_heads if keys else 0):
            m = n // (config.q_heads // config.kv_heads)
            scores = np.array([q[i][n] @ k[j][m] for j in keys]) * scale
            if config.soft_cap is not None:
                scores = config.soft_cap * np.tanh(scores / config.soft_cap)
            probs = np.exp(scores - scores.max())
            mixed = sum(p * v[j][m] for p, j in zip(probs / probs.sum(), keys, strict=True))
            out[i] += mixed @ params["o"]["kernel"][n]
    return out


def _activation(x, config):
    if config.activation.__name__ == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gated(x, gate, up, down, config):
    return (_activation(x @ gate, config) * (x @ up)) @ down


def _ffn(x, params, config):
    if not isinstance(config, MoEConfig):
        return _gated(x, *(params[n]["kernel"] for n in ("gate", "up", "down")), config)
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        logits = token @ params["router"]["kernel"]
        probs = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-probs)[: config.experts_per_token]
        total = probs[chosen].sum() if config.normalize_weights else 1.0
        for e in chosen:
            out[t] += probs[e] / total * _gated(token, *(params["experts"][n][e] for n in ("gate", "up", "down")), config.expert)
        open_share = 1 / (1 + np.exp(-token @ params["shared_gate"]["kernel"]))
        out[t] += open_share * _gated(token, *(params["shared"][n]["kernel"] for n in ("gate", "up", "down")), config.shared)
    return out


def _slice(tree, index):
    return {n: _slice(v, index) if isinstance(v, dict) else np.asarray(v, np.float64)[index] for n, v in tree.items()}


def _forward(config, params, tokens, segments, positions):
    """Hidden states [T, D] of one row after the final norm."""
    x = np.asarray(params["embed"]["table"], np.float64)[tokens]
    x = x * math.sqrt(config.model_dim) if config.embedding_scale else x
    for layer in range(config.num_layers):
        repeat, place = divmod(layer, len(config.layer_pattern))
        block, weights = config.layer_pattern[place], _slice(params["blocks"][str(place)], repeat)
        y = _norm(x, weights["attention_norm"]["gain"], block.norm)
        y = _attention(y, weights["attention"], segments, positions, block.attention)
        x = x + (_norm(y, weights["attention_post_norm"]["gain"], block.norm) if block.post_norms else y)
        y = _ffn(_norm(x, weights["ffn_norm"]["gain"], block.norm), weights["ffn"], block.ffn)
        x = x + (_norm(y, weights["ffn_post_norm"]["gain"], block.norm) if block.post_norms else y)
    return _norm(x, np.asarray(params["final_norm"]["gain"], np.float64), config.final_norm)


def test_hidden_states_match_a_naive_float64_forward_pass(family, make_batch):
    batch = make_batch([[9, 10], [16]], 24)  # two documents and padding; more than two windows of 8
    outputs = family.apply(family.params, batch)
    for row in range(2):
        arrays = (np.asarray(a[row]) for a in (batch.tokens, batch.segment_ids, batch.positions))
        expected = _forward(family.config, family.params, *arrays)
        valid = np.asarray(batch.segment_ids[row]) > 0
        np.testing.assert_allclose(outputs.hidden[row][valid], expected[valid], atol=1e-4)
