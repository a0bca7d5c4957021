"""The header reader against the gguf package's own, and against damage."""

import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmx.convert.gguf.header import read_header
from lmx.convert.source import ConversionError

_KEYS = {
    "general.name": "tiny \u00e9\u4e16",
    "context_length": 64,
    "rope.freq_base": 10000.0,
    "attention.causal": True,
    "tokenizer.ggml.tokens": ["<s>", "", "a\u00e9", "\u4e16"],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0, 3.0],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
}
_TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(7, dtype=np.float16),
    "c": np.ones((2, 3, 32), np.float32),
}


@pytest.fixture
def path(write_gguf) -> Path:
    return write_gguf("llama", _KEYS, _TENSORS)


def _sentence(value) -> str:
    """Name of a case: its sentence, not its bytes."""
    return value if isinstance(value, str) else "file"


def _raw(*, magic=b"GGUF", version=3, tensors=(), pairs=(), num_tensors=None, num_pairs=None, data=b"") -> bytes:
    """A file by hand: `pairs` and `tensors` are already encoded."""
    header = magic + struct.pack(
        "<IQQ", version, len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs
    )
    header += b"".join(pairs) + b"".join(tensors)
    return header + b"\0" * (-len(header) % 32) + data


def _text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _tensor(name: bytes, axes, kind=0, offset=0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes) + struct.pack("<IQ", kind, offset)


def test_metadata_and_tensors_agree_with_the_gguf_package(path):
    header, reference = read_header(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert dict(header.metadata) == fields
    assert header.metadata.length("tokenizer.ggml.tokens") == 4 and header.metadata.length("general.name") is None
    for tensor in reference.tensors:
        ours = header.tensors[tensor.name]
        assert (ours.shape, ours.type) == (tuple(reversed(tensor.shape.tolist())), tensor.tensor_type)
        assert (ours.offset, ours.num_bytes) == (tensor.data_offset, tensor.n_bytes)
    assert list(header.tensors) == [tensor.name for tensor in reference.tensors]


def test_version_2_and_another_alignment_are_read(write_gguf, tmp_path):
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(256)
    for name, values in _TENSORS.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    header = read_header(path)
    assert header.version == 2
    assert [tensor.offset % 256 for tensor in header.tensors.values()] == [0, 0, 0]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4" + b"\0" * 40, "not a GGUF file"),
        (_raw(version=1), "GGUF version 1"),
        (_raw(version=0x03000000), "big-endian"),
        (_raw()[:20], "only .* are left"),
        (_raw(num_tensors=1 << 60), "only .* are left"),
        (_raw(num_pairs=1 << 60), "only .* are left"),
        (_raw(pairs=[_pair(b"", 4, b"\0\0\0\0")]), "is empty"),
        (_raw(pairs=[_pair(b"k", 4, b"\0\0\0\0")] * 2), "'k' occurs twice"),
        (_raw(pairs=[_pair(b"\xff", 4, b"\0\0\0\0")]), "not valid UTF-8"),
        (_raw(pairs=[struct.pack("<Q", 1 << 40) + b"k" * 20]), "claims .* bytes"),
        (_raw(pairs=[_pair(b"k", 13, b"\0\0\0\0")]), "unknown type 13"),
        (_raw(pairs=[_pair(b"k", 7, b"\2")]), "no boolean"),
        (_raw(pairs=[_pair(b"k", 8, struct.pack("<Q", 1 << 50))]), "only .* are left"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 4, 1 << 61))]), "only .* are left"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 8, 1 << 40))]), "only .* are left"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 8, 2) + _text(b"a") + struct.pack("<Q", 1 << 63))]), "does not fit"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 8, 1) + _text(b"\xff\xfe"))]), "not valid UTF-8"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 9, 1) + b"\0" * 12)]), "holds arrays"),
        (_raw(pairs=[_pair(b"k", 9, struct.pack("<IQ", 99, 1) + b"\0" * 12)]), "unknown type 99"),
        (_raw(pairs=[_pair(b"general.alignment", 4, struct.pack("<I", 24))]), "not a power of two"),
        (_raw(pairs=[_pair(b"general.alignment", 4, struct.pack("<I", 0))]), "not a power of two"),
        (_raw(tensors=[_tensor(b"", [8])], data=b"\0" * 32), "empty name"),
        (_raw(tensors=[_tensor(b"t", [])], data=b"\0" * 32), "0 axes"),
        (_raw(tensors=[_tensor(b"t", [1] * 5)], data=b"\0" * 32), "5 axes"),
        (_raw(tensors=[_tensor(b"t", [8, 0])], data=b"\0" * 32), "is empty"),
        (_raw(tensors=[_tensor(b"t", [8], kind=31)], data=b"\0" * 32), "unknown type 31"),
        (_raw(tensors=[_tensor(b"t", [33], kind=8)], data=b"\0" * 64), "no whole Q8_0 blocks of 32"),
        (_raw(tensors=[_tensor(b"t", [8], offset=8)], data=b"\0" * 64), "no multiple of 32"),
        (_raw(tensors=[_tensor(b"t", [9])], data=b"\0" * 32), "cut short"),
        (_raw(tensors=[_tensor(b"t", [1 << 63, 1 << 63, 1 << 63])], data=b"\0" * 32), "cut short"),
        (_raw(tensors=[_tensor(b"t", [8], offset=1 << 62)], data=b"\0" * 32), "cut short"),
        (_raw(tensors=[_tensor(b"t", [8])] * 2, data=b"\0" * 32), "'t' occurs twice"),
        (_raw(tensors=[_tensor(b"t", [16]), _tensor(b"u", [8], offset=32)], data=b"\0" * 64), "'t' and 'u' overlap"),
    ],
    ids=_sentence,
)
def test_damage_is_named_in_one_sentence(tmp_path, data, sentence):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=sentence) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_cut_anywhere_is_refused(path, tmp_path):
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 400, 7), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ConversionError, match="cut.gguf"):
            read_header(cut)


def test_a_directory_or_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="not a regular file"):
        read_header(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing.gguf")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_crashes_the_reader_or_makes_it_allocate(path, tmp_path, data):
    original = path.read_bytes()
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 9))
        if data.draw(st.booleans()):
            content[position] ^= data.draw(st.integers(1, 255))
        else:
            absurd = data.draw(
                st.sampled_from([0, 1, 255, 1 << 20, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
            )
            content[position : position + 8] = struct.pack("<Q", absurd)
    damaged = tmp_path / "fuzzed.gguf"
    damaged.write_bytes(content)
    tracemalloc.start()
    try:
        header = read_header(damaged)
        values = dict(header.metadata)
        assert all(tensor.offset + tensor.num_bytes <= len(content) for tensor in header.tensors.values())
        assert len(values) == len(header.metadata)
    except ConversionError as error:
        assert str(damaged) in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (2 << 20) + 64 * len(content)
