"""Hugging Face transformers on torch: `generate` with the weights that lmx's side wrote."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tools.bench_sides import generate_protocol as protocol


def build(shape: str, folder: Path) -> protocol.Generator:
    """Greedy generation with the default cache, on all cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    sizes = protocol.SHAPES[shape]
    numbers = json.loads((folder / "model.json").read_text())
    model = transformers.AutoModelForCausalLM.from_config(_config(sizes, numbers), dtype=torch.float32).eval()
    with np.load(folder / "params.npz") as params:
        _load(model, dict(params), sizes)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        ids = torch.from_numpy(prompts).long()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
            )
        return out[:, ids.shape[1] :].numpy()

    matrix, array = torch.ones(protocol.MATRIX, protocol.MATRIX), torch.ones(protocol.READ_BYTES // 4)
    return protocol.Generator(generate, lambda: matrix @ matrix, lambda: array.sum().item())


def _config(sizes: protocol.Shape, numbers: dict[str, Any]) -> Any:
    scaling = numbers["rope_scaling"]
    rope = {
        "rope_type": "llama3",
        "rope_theta": numbers["rope_theta"],
        "factor": scaling["factor"],
        "low_freq_factor": scaling["low_frequency_factor"],
        "high_freq_factor": scaling["high_frequency_factor"],
        "original_max_position_embeddings": scaling["original_length"],
    }
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    return transformers.LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.model_dim,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.q_heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.ffn_dim,
        max_position_embeddings=protocol.PROMPT + protocol.NEW,
        rms_norm_eps=numbers["norm_eps"],
        rope_parameters=rope,
        tie_word_embeddings=sizes.tied,
        bos_token_id=None,
        eos_token_id=None,
        **attention,
    )


def _load(model: Any, params: dict[str, np.ndarray], sizes: protocol.Shape) -> None:
    """Copies lmx's parameters; every tensor of the model must get one."""
    tensors = {"model.embed_tokens.weight": params["embed/table"], "model.norm.weight": params["final_norm/gain"]}
    tensors["lm_head.weight"] = params.get("head/table", params["embed/table"])
    for layer in range(sizes.layers):
        target = f"model.layers.{layer}"
        for name in "qkvo":
            kernel = params[f"blocks/0/attention/{name}/kernel"][layer]  # [D, N, H], of o [N, H, D]
            matrix = kernel.reshape(-1, sizes.model_dim) if name == "o" else kernel.reshape(sizes.model_dim, -1)
            tensors[f"{target}.self_attn.{name}_proj.weight"] = matrix.T
        for name in ("gate", "up", "down"):
            tensors[f"{target}.mlp.{name}_proj.weight"] = params[f"blocks/0/ffn/{name}/kernel"][layer].T
        for theirs, ours in {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}.items():
            tensors[f"{target}.{theirs}.weight"] = params[f"blocks/0/{ours}/gain"][layer]
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in tensors.items()}, strict=True)


if __name__ == "__main__":
    protocol.serve(build)
