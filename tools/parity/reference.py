"""transformers' side of the comparison; needs the extra `parity`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tools.parity import cases

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def save(case: cases.Case, folder: Path) -> None:
    """Writes the case as a checkpoint, by transformers itself, with the tensors' values from their names."""
    config = AutoConfig.for_model(case.model_type, **(cases.COMMON | dict(case.fields)))
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    file = folder / "model.safetensors"
    unit_offset = case.model_type.startswith("gemma")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(file).items()}
    tensors = {name: cases.weights(name, shape, unit_offset=unit_offset) for name, shape in shapes.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def load(path: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model in a Hugging Face folder (or a GGUF file in it, by `gguf_file=`)."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager", **options).eval()


def logits(model: Any) -> np.ndarray:
    """Logits of the cases' batch, [2, LENGTH, V] float32; what stands at padding means nothing."""
    tokens, mask = cases.batch()
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long()).logits.float().numpy()


def greedy(model: Any) -> list[list[int]]:
    """`NEW_TOKENS` tokens after each of the cases' prompts."""
    config = GenerationConfig(max_new_tokens=cases.NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
    found = []
    for prompt in cases.PROMPTS:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        found.append(out[0, len(prompt) :].tolist())
    return found
