"""All families by name, and the choice of one."""

from collections.abc import Mapping
from typing import Any

from lmx.convert.families.fields import Fields
from lmx.convert.families.gemma2 import GEMMA2
from lmx.convert.families.llama import LLAMA
from lmx.convert.families.parts import Family
from lmx.convert.families.qwen2 import QWEN2
from lmx.convert.families.qwen2_moe import QWEN2_MOE
from lmx.convert.source import ConversionError
from lmx.model.config import DecoderConfig

FAMILIES: Mapping[str, Family] = {family.name: family for family in (LLAMA, QWEN2, GEMMA2, QWEN2_MOE)}


def read_config(
    values: Mapping[str, Any], where: str, *, max_tensors: int | None = None
) -> tuple[Family, DecoderConfig, tuple[str, ...]]:
    """The family and model that a `config.json` describes, and sentences about what was passed over.

    Args:
      values: the object in the file.
      where: the file's path, for the messages.
      max_tensors: how many tensors the checkpoint has, which bounds the numbers of layers and of experts.

    Raises:
      ConversionError: another family, or a model that lmx does not implement; the message names the field.
    """
    fields = Fields(values, where)
    name = fields.raw("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        fields.fail(f"describes the model type {str(name)[:60]!r}; lmx converts {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for stored in ("quantization_config", "compression_config"):
        fields.refuse(stored, "quantised weights in this form are not read; convert an unquantised checkpoint, or a GGUF file")
    architectures = fields.raw("architectures", [])
    known = (family.architecture, family.architecture.replace("ForCausalLM", "Model"))
    if not isinstance(architectures, list) or any(name not in known for name in architectures):
        fields.fail(f"says architectures={str(architectures)[:80]}; for this family lmx reads {family.architecture}")
    for counted in ("num_hidden_layers", "num_experts"):
        if max_tensors is not None and fields.has(counted) and fields.size(counted, minimum=0) > max_tensors:
            fields.fail(f"says {counted}={fields.size(counted)}, but the checkpoint has only {max_tensors} tensors")
    try:
        config = family.read(fields)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{where} describes no valid model: {error}") from error
    return family, config, fields.finish(family.harmless)


def choose_family(config: DecoderConfig, preferred: str | None) -> tuple[Family, dict[str, Any]]:
    """A family that can hold a model, and its fields.

    Args:
      config: the model.
      preferred: the family that it came from; tried first.

    Raises:
      ConversionError: no family can; the message says why for each one.
    """
    reasons = []
    for family in sorted(FAMILIES.values(), key=lambda family: family.name != preferred):
        try:
            return family, family.write(config)
        except ConversionError as error:
            reasons.append(str(error))
    raise ConversionError("no Hugging Face family of those that lmx writes can hold this model: " + "; ".join(reasons))
