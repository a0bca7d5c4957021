"""Hugging Face transformers on torch: the usual training step, from the weights that lmx's side wrote."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tools.bench_sides import protocol


def build(shape: str, folder: Path) -> protocol.Trainee:
    """A step of forward, backward, clipping and fused AdamW, on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    numbers = json.loads((folder / "model.json").read_text())
    model = transformers.AutoModelForCausalLM.from_config(_config(shape, numbers), dtype=torch.float32).train()
    with np.load(folder / "params.npz") as params:
        _load(model, dict(params), numbers["pattern"])
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=protocol.LEARNING_RATE,
        betas=(protocol.BETA1, protocol.BETA2),
        eps=protocol.EPSILON,
        weight_decay=protocol.WEIGHT_DECAY,
        fused=True,
    )
    tokens = torch.from_numpy(protocol.tokens(shape)).long()

    def step() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.CLIP_NORM)
        optimizer.step()
        return loss.item()

    matrix = torch.ones(protocol.MATRIX, protocol.MATRIX)
    return protocol.Trainee(step, lambda: matrix @ matrix)


def _config(shape: str, numbers: dict[str, Any]) -> Any:
    common: dict[str, Any] = {
        "vocab_size": protocol.VOCABULARY[shape],
        "hidden_size": protocol.MODEL_DIM,
        "num_hidden_layers": protocol.LAYERS,
        "num_attention_heads": protocol.Q_HEADS,
        "num_key_value_heads": protocol.KV_HEADS,
        "head_dim": protocol.HEAD_DIM,
        "intermediate_size": protocol.FFN_DIM,
        "max_position_embeddings": protocol.LENGTH,
        "rms_norm_eps": numbers["norm_eps"],
        "use_cache": False,
    }
    if shape == "llama":
        rope = {
            "rope_type": "llama3",
            "rope_theta": numbers["rope_theta"],
            "factor": numbers["rope_factor"],
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": numbers["original_length"],
        }
        common |= {"rope_parameters": rope, "attn_implementation": "sdpa"}
        return transformers.LlamaConfig(**common, tie_word_embeddings=False)
    # torch's fused attention has no soft cap; transformers itself advises "eager".
    common |= {"rope_parameters": {"rope_type": "default", "rope_theta": numbers["rope_theta"]}, "attn_implementation": "eager"}
    scalar = round(numbers["attention_scale"] ** -2)
    return transformers.Gemma2Config(**common, sliding_window=protocol.WINDOW, query_pre_attn_scalar=scalar)


def _load(model: Any, params: dict[str, np.ndarray], pattern: int) -> None:
    """Copies lmx's parameters into a Llama or Gemma 2; every tensor of the model must get one."""
    tensors = {"model.embed_tokens.weight": params["embed/table"], "model.norm.weight": params["final_norm/gain"]}
    tensors["lm_head.weight"] = params.get("head/table", params["embed/table"])
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    if "blocks/0/ffn_post_norm/gain" in params:
        norms |= {
            "post_attention_layernorm": "attention_post_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "ffn_post_norm",
        }
    for layer in range(protocol.LAYERS):
        block, repeat, target = f"blocks/{layer % pattern}", layer // pattern, f"model.layers.{layer}"
        for name in "qkvo":
            kernel = params[f"{block}/attention/{name}/kernel"][repeat]  # [D, N, H], of o [N, H, D]
            matrix = kernel.reshape(-1, protocol.MODEL_DIM) if name == "o" else kernel.reshape(protocol.MODEL_DIM, -1)
            tensors[f"{target}.self_attn.{name}_proj.weight"] = matrix.T
        for name in ("gate", "up", "down"):
            tensors[f"{target}.mlp.{name}_proj.weight"] = params[f"{block}/ffn/{name}/kernel"][repeat].T
        for theirs, ours in norms.items():
            tensors[f"{target}.{theirs}.weight"] = params[f"{block}/{ours}/gain"][repeat]
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()}, strict=True)


if __name__ == "__main__":
    protocol.serve(build)
