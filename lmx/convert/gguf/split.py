"""GGUF models in several files, `name-00001-of-00003.gguf` and so on: found from any one of them, and read as one."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from lmx.convert.gguf.header import Header, StoredTensor, read_header
from lmx.convert.gguf.metadata import Metadata
from lmx.convert.source import ConversionError

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model's metadata and tensors, from one file or several.

    Attributes:
      metadata: of the first file.
      tensors: of all files, by name.
      paths: the files.
    """

    metadata: Metadata
    tensors: Mapping[str, StoredTensor]
    paths: tuple[Path, ...]


def read_model(path: Path) -> Model:
    """Headers of a GGUF file and of the others that it is split into.

    Args:
      path: the file, or any of the split ones.

    Raises:
      FileNotFoundError: there is no such file.
      ConversionError: one of them is damaged or missing, or they are not parts of the same model.
    """
    header = read_header(path)
    count = _whole(header, "split.count", 1)
    if count <= 1:
        return Model(header.metadata, header.tensors, (path,))
    headers = [header if part == path else read_header(part) for part in _parts(path, count)]
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(headers):
        if (_whole(part, "split.no", -1), _whole(part, "split.count", 1)) != (number, count):
            raise ConversionError(
                f"{part.path}: says it is part {_whole(part, 'split.no', -1) + 1} of {_whole(part, 'split.count', 1)}, "
                f"but by its name it is part {number + 1} of {count}; the files are mixed up"
            )
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise ConversionError(f"{part.path}: the tensor {name!r} is also in {tensors[name].path}")
            tensors[name] = tensor
    total = _whole(headers[0], "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise ConversionError(f"{headers[0].path}: its parts should hold {total:,} tensors together but hold {len(tensors):,}")
    return Model(headers[0].metadata, tensors, tuple(part.path for part in headers))


def _parts(path: Path, count: int) -> list[Path]:
    match = _NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ConversionError(
            f"{path}: is one of {count} files, whose names must end in -00001-of-{count:05}.gguf and so on for lmx to find them"
        )
    parts = [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := [part for part in parts if not part.is_file()]:
        raise ConversionError(f"{path}: {len(missing)} of its {count} parts are missing, the first is {missing[0].name}")
    return parts


def _whole(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConversionError(f"{header.path}: {key} is {value!r}, not a whole number")
    return value
