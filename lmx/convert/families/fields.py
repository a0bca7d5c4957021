"""A `config.json` read field by field, so that no field which changes the mathematics is passed over."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from lmx.convert.source import ConversionError

# Fields of every family that say how to store, train, print or serve the model, and nothing of what it computes.
HARMLESS = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path _commit_hash architectures attention_dropout auto_map
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation chat_template chunk_size_feed_forward cls_token_id
    custom_pipelines decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout_prob id2label initializer_range is_decoder is_encoder_decoder keys_to_ignore_at_inference
    label2id length_penalty max_length max_new_tokens min_length model_max_length model_type no_repeat_ngram_size num_beam_groups
    num_beams num_labels num_return_sequences output_attentions output_hidden_states output_router_logits output_scores
    pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty resid_pdrop return_dict
    return_dict_in_generate router_aux_loss_coef sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tie_last_hidden_states tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    transformers.js_config typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache _pre_quantization_dtype
    unk_token_id mask_token_id""".split()  # noqa: SIM905 (as a list it would fill a page)
)
# Of a field that nobody has heard of, the name tells whether it may change what the model computes.
_SUSPICIOUS = re.compile(
    r"act|alibi|attn|attention|bias|block|cap|chunk|clip|conv|expert|factor|gate|head|hidden|intermediate|latent|layer|lora|mlp|moe|"
    r"mtp|multiplier|norm|partial|position|pruned|quant|rank|residual|rope|rotary|router|scal|shared|size|sink|sliding|softcap|"
    r"sparse|step|theta|tie|window|yarn|cross|bidirectional"
)
MAX_SIZE = (1 << 31) - 1


class Fields:
    """The fields of one JSON object; every field that is asked for counts as understood."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        """`where` is the subject of the sentences, the file's path."""
        self.values = values
        self.where = where
        self.used: set[str] = set()
        """Names of the fields that were asked for."""

    def has(self, name: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(name) is not None

    def raw(self, name: str, default: Any = None) -> Any:
        """A field as it is; null counts as absent."""
        self.used.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number from `minimum` to 2^31; without a default the field must be there."""
        value = self.raw(name, default)
        if value is None:
            self.fail(f"lacks the field {name}")
        if type(value) is not int or not minimum <= value <= MAX_SIZE:
            self.fail(f"says {name}={_short(value)}; a whole number from {minimum} to {MAX_SIZE} was expected")
        return int(value)

    def number(self, name: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A finite number above `above`; without a default the field must be there."""
        value = self.raw(name, default)
        if value is None:
            self.fail(f"lacks the field {name}")
        if type(value) not in (int, float) or not math.isfinite(value) or value <= above:
            self.fail(f"says {name}={_short(value)}; a number above {above:g} was expected")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number above 0, or None where the field is null or absent."""
        self.used.add(name)
        return self.number(name) if self.has(name) else None

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(name, default)
        if not isinstance(value, bool):
            self.fail(f"says {name}={_short(value)}; true or false was expected")
        return value

    def choice(self, name: str, default: str | None, choices: Collection[str]) -> str:
        """One of some strings."""
        value = self.raw(name, default)
        if not isinstance(value, str) or value not in choices:
            self.fail(f"says {name}={_short(value)}, which lmx does not implement; it knows {', '.join(sorted(choices))}")
        return str(value)

    def refuse(self, name: str, why: str, *, unless: Collection[Any] = (None, False)) -> None:
        """Fails if a field has another value than the plain ones."""
        value = self.raw(name)
        if not any(value is plain or (type(value) is type(plain) and value == plain) for plain in unless):
            self.fail(f"says {name}={_short(value)}: {why}")

    def finish(self, harmless: Collection[str]) -> tuple[str, ...]:
        """Checks the fields that nobody asked for.

        Args:
          harmless: fields that may be there and change nothing.

        Returns:
          Sentences about unknown fields that were passed over.

        Raises:
          ConversionError: a field that is unknown, set, and named like something that changes the computation.
        """
        unknown = [name for name in self.values if name not in self.used and name not in harmless and name not in HARMLESS]
        passed_over = []
        for name in unknown:
            value = self.values[name]
            if value is None or value is False or value == [] or value == {}:
                continue
            if _SUSPICIOUS.search(name.lower()):
                self.fail(
                    f"says {name[:60]}={_short(value)}, which lmx does not know and which may change what the model computes; "
                    "remove the field if it does not"
                )
            passed_over.append(name[:60])
        return (f"unknown fields of {self.where} were passed over: {', '.join(passed_over)}",) if passed_over else ()

    def fail(self, what: str) -> NoReturn:
        """Raises ConversionError: the file, and what it says."""
        raise ConversionError(f"{self.where} {what}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
