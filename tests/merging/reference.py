"""Merges in NumPy float64, written from the papers on flat vectors, and random trees of stacked layers to try them on."""

import jax
import jax.numpy as jnp
import numpy as np


def tree(seed, dtype="float32", layers=3, scale=1.0):
    """Parameters of a model of two places a pattern, with an embedding, experts and a final norm."""
    random = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(scale * random.normal(size=shape), dtype)

    block = {"attention": {"q": {"kernel": leaf(layers, 6, 2, 3)}}, "norm": {"gain": leaf(layers, 6)}}
    moe = {"attention": {"q": {"kernel": leaf(layers, 6, 2, 3)}}, "ffn": {"experts": {"gate": leaf(layers, 2, 6, 5)}}}
    return {"blocks": {"0": block, "1": moe}, "embedding": {"table": leaf(11, 6)}, "final_norm": {"gain": leaf(6)}}


def plus(base, scale, *seeds):
    """Models fine-tuned from a base."""
    deltas = [tree(seed, scale=scale) for seed in seeds]
    return [jax.tree.map(lambda b, d: (b + d).astype(b.dtype), base, delta) for delta in deltas]


def flat(params):
    """One float64 vector of all parameters."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params)])


def groups(params):
    """Group -> float64 vector, with the layers of the stacked leaves apart, layer = repeat * 2 + place."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        keys = [entry.key for entry in path]
        if keys[0] != "blocks":
            found.setdefault(keys[0], []).append(np.asarray(leaf, np.float64).ravel())
            continue
        for repeat, part in enumerate(np.asarray(leaf, np.float64)):
            found.setdefault(str(2 * repeat + int(keys[1])), []).append(part.ravel())
    return {group: np.concatenate(parts) for group, parts in found.items()}


def slerp(first, second, t):
    """Shoemake's formula on two vectors."""
    angle = np.arccos(np.clip(first @ second / np.linalg.norm(first) / np.linalg.norm(second), -1, 1))
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def slerps(vectors):
    """WARP's appendix B.3: one after another, 1 / m for the m-th."""
    found = vectors[0]
    for m, vector in enumerate(vectors[1:], start=2):
        found = slerp(found, vector, 1 / m)
    return found


def ties(vectors, density, scale):
    """Algorithm 1 of TIES, number by number."""
    keep = max(1, int(density * len(vectors[0])))
    trimmed = []
    for vector in vectors:
        kept = np.zeros_like(vector)
        top = np.argsort(-np.abs(vector), kind="stable")[:keep]
        kept[top] = vector[top]
        trimmed.append(kept)
    merged = np.zeros_like(vectors[0])
    for p in range(len(merged)):
        sign = np.sign(sum(vector[p] for vector in trimmed))
        agreeing = [vector[p] for vector in trimmed if sign and np.sign(vector[p]) == sign]
        merged[p] = np.mean(agreeing) if agreeing else 0.0
    return scale * merged
