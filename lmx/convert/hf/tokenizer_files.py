"""The small files of a Hugging Face directory: the tokenizer's, the chat template, the generation defaults."""

import shutil
from pathlib import Path

from lmx.convert import json_file
from lmx.convert.source import ConversionError, ModelDescription
from lmx.tokenizer import foreign

GENERATION_CONFIG = "generation_config.json"
_DEFINITION = "tokenizer.json"
_VOCABULARIES = (_DEFINITION, "tokenizer.model", "*.tiktoken")
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_MAX_BYTES = 256 << 20


def has_tokenizer(directory: Path) -> bool:
    """Whether a directory has a vocabulary that `foreign.read` can open."""
    return any(next(directory.glob(pattern), None) is not None for pattern in _VOCABULARIES)


def keep_files(origin: Path, target: Path) -> None:
    """Copies the small files of a checkpoint, so that a conversion back can give them back as they were."""
    found = [path for pattern in (*_VOCABULARIES, *_COMPANIONS, GENERATION_CONFIG) for path in sorted(origin.glob(pattern))]
    for path in found:
        _copy(path, target)


def write_tokenizer_files(directory: Path, model: ModelDescription) -> tuple[str, ...]:
    """The tokenizer's files: the source's own where transformers can read them, else files made from the tokenizer.

    Returns:
      Sentences about what was not written.
    """
    if model.tokenizer is None:
        return ("the source has no tokenizer, and so the directory has none",)
    if model.origin is not None and (model.origin / _DEFINITION).is_file():
        for path in (path for pattern in (*_VOCABULARIES, *_COMPANIONS) for path in sorted(model.origin.glob(pattern))):
            _copy(path, directory)
        return ()
    try:
        foreign.write(directory, model.tokenizer, model.chat)
    except ValueError as error:
        return (f"the tokenizer is not written: {error}",)
    return ()


def copy_generation_config(origin: Path | None, directory: Path) -> bool:
    """Copies the source's `generation_config.json`; whether there was one."""
    if origin is None or not (origin / GENERATION_CONFIG).is_file():
        return False
    json_file.read_object(origin / GENERATION_CONFIG)
    _copy(origin / GENERATION_CONFIG, directory)
    return True


def _copy(path: Path, directory: Path) -> None:
    if not path.is_file():
        raise ConversionError(f"{path} is not a regular file")
    if path.stat().st_size > _MAX_BYTES:
        raise ConversionError(f"{path} has {path.stat().st_size} bytes, which no tokenizer's file has")
    directory.mkdir(exist_ok=True)
    shutil.copyfile(path, directory / path.name)
