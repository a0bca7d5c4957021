"""Files in the format of torch.save, made without torch, and tiny models in Meta's layout."""

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


class Pickle:
    """The opcodes that torch.save writes for a dict of tensors, protocol 2."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.out.write(b"\x80\x02")

    def text(self, value: str) -> None:
        data = value.encode()
        self.out.write(b"X" + struct.pack("<I", len(data)) + data)

    def number(self, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self.out.write(b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a" + bytes([len(data)]) + data)

    def name(self, module: str, name: str) -> None:
        self.out.write(b"c" + f"{module}\n{name}\n".encode())

    def sizes(self, values: tuple[int, ...]) -> None:
        self.out.write(b"(")
        for value in values:
            self.number(value)
        self.out.write(b"t")

    def tensor(self, key: str, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, count: int) -> None:
        self.name("torch._utils", "_rebuild_tensor_v2")
        self.out.write(b"((")
        self.text("storage")
        self.name("torch", _STORAGES.get(dtype, dtype))
        self.text(key)
        self.text("cpu")
        self.number(count)
        self.out.write(b"tQ")
        self.number(offset)
        self.sizes(shape)
        self.sizes(strides)
        self.out.write(b"\x89")
        self.name("collections", "OrderedDict")
        self.out.write(b")RtR")


def state_pickle(tensors: Mapping[str, np.ndarray], keys: Mapping[str, str] | None = None) -> bytes:
    """data.pkl of a dict of contiguous tensors, each in a storage of its own unless `keys` shares them."""
    pickle = Pickle()
    pickle.name("collections", "OrderedDict")
    pickle.out.write(b")R(")
    for index, (name, values) in enumerate(tensors.items()):
        pickle.text(name)
        strides = tuple(stride // values.itemsize for stride in values.strides)
        pickle.tensor((keys or {}).get(name, str(index)), values.dtype.name, values.shape, strides, 0, values.size)
    pickle.out.write(b"u.")
    return pickle.out.getvalue()


def archive(entries: Mapping[str, bytes], *, large: bool = False, method: int = 0, flags: int = 0) -> bytes:
    """A zip archive of stored entries; `large` writes every number where an archive of more than 4 GiB has it."""
    out, directory, count = bytearray(), bytearray(), 0
    full = 0xFFFFFFFF
    for name, data in entries.items():
        raw, checksum, at = name.encode(), zlib.crc32(data), len(out)
        padding = -(at + 30 + len(raw) + 4) % 64
        out += b"PK\3\4" + struct.pack("<5H3I2H", 20, flags, method, 0, 0, checksum, len(data), len(data), len(raw), 4 + padding)
        out += raw + b"FB" + struct.pack("<H", padding) + b"\0" * padding + data
        sizes = (full, full, full) if large else (len(data), len(data), at)
        extra = struct.pack("<2H3Q", 1, 24, len(data), len(data), at) if large else b""
        directory += b"PK\1\2" + struct.pack(
            "<6H3I5H2I", 20, 20, flags, method, 0, 0, checksum, *sizes[:2], len(raw), len(extra), 0, 0, 0, 0, sizes[2]
        )
        directory += raw + extra
        count += 1
    begin = len(out)
    out += directory
    if large:
        at = len(out)
        out += b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 20, 20, 0, 0, count, count, len(directory), begin)
        out += b"PK\6\7" + struct.pack("<IQI", 0, at, 1)
        return bytes(out + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, full, full, 0))
    return bytes(out + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, len(directory), begin, 0))


def checkpoint_bytes(tensors: Mapping[str, np.ndarray], keys: Mapping[str, str] | None = None, **options: Any) -> bytes:
    """A whole file of torch.save."""
    entries = {"consolidated/data.pkl": state_pickle(tensors, keys), "consolidated/byteorder": b"little"}
    for index, (name, values) in enumerate(tensors.items()):
        entries[f"consolidated/data/{(keys or {}).get(name, str(index))}"] = values.tobytes()
    return archive(entries | {"consolidated/version": b"3\n"}, **options)


class Format:
    """The functions above, for tests (which cannot import this file)."""

    pickle = Pickle
    state_pickle = staticmethod(state_pickle)
    archive = staticmethod(archive)
    checkpoint = staticmethod(checkpoint_bytes)


@pytest.fixture
def torch_format() -> type[Format]:
    return Format


HEADS, KV_HEADS, HEAD_DIM, WIDTH, FFN, VOCAB, LAYERS = 4, 2, 8, 32, 48, 40, 2
PARAMS = {
    "dim": WIDTH,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "n_kv_heads": KV_HEADS,
    "vocab_size": VOCAB,
    "multiple_of": 16,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
}


def meta_tensors(dtype: str = "float32", tied: bool = False) -> dict[str, np.ndarray]:
    """Random weights under Meta's names."""
    rng = np.random.default_rng(7)
    shapes = {"tok_embeddings.weight": (VOCAB, WIDTH), "norm.weight": (WIDTH,)}
    shapes |= {} if tied else {"output.weight": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        at = f"layers.{layer}."
        shapes |= {f"{at}attention.wq.weight": (HEADS * HEAD_DIM, WIDTH), f"{at}attention.wo.weight": (WIDTH, HEADS * HEAD_DIM)}
        shapes |= {f"{at}attention.w{name}.weight": (KV_HEADS * HEAD_DIM, WIDTH) for name in "kv"}
        shapes |= {f"{at}feed_forward.w{name}.weight": (FFN, WIDTH) for name in (1, 3)}
        shapes |= {
            f"{at}feed_forward.w2.weight": (WIDTH, FFN),
            f"{at}attention_norm.weight": (WIDTH,),
            f"{at}ffn_norm.weight": (WIDTH,),
        }
    tensors = {name: (rng.normal(size=shape) * 0.2).astype(np.float32) for name, shape in shapes.items()}
    tensors["rope.freqs"] = np.ones(HEAD_DIM // 2, np.float32)
    return {name: values.astype(getattr(ml_dtypes, dtype, dtype)) for name, values in tensors.items()}


def cut(tensors: Mapping[str, np.ndarray], parts: int, embedding_axis: int) -> list[dict[str, np.ndarray]]:
    """The files of a model-parallel checkpoint."""
    files: list[dict[str, np.ndarray]] = [{} for _ in range(parts)]
    for name, values in tensors.items():
        rows = any(f".w{letter}." in name for letter in "qkv13") or name == "output.weight"
        axis = 0 if rows else 1 if ".wo." in name or ".w2." in name else embedding_axis if "tok_embeddings" in name else None
        pieces = [values] * parts if axis is None else np.split(values, parts, axis)
        for file, piece in zip(files, pieces, strict=True):
            file[name] = np.ascontiguousarray(piece)
    return files


@pytest.fixture
def meta_model() -> Callable[..., dict[str, np.ndarray]]:
    """meta_model(dtype, tied): random weights under Meta's names."""
    return meta_tensors


@pytest.fixture
def meta_directory(tmp_path: Path) -> Callable[..., Path]:
    """meta_directory(tensors, parts, embedding_axis, **params): a directory in Meta's layout; None removes a param."""

    def write(tensors: Mapping[str, np.ndarray], parts: int = 1, embedding_axis: int = 0, **params: Any) -> Path:
        folder = tmp_path / "meta"
        folder.mkdir(exist_ok=True)
        stated = {name: value for name, value in (PARAMS | params).items() if value is not None}
        (folder / "params.json").write_text(json.dumps(stated))
        for index, file in enumerate(cut(tensors, parts, embedding_axis)):
            (folder / f"consolidated.{index:02}.pth").write_bytes(checkpoint_bytes(file))
        return folder

    return write
