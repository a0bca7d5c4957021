"""The safetensors reader against the library's writer, files that lie, and noise; the writer against the library."""

import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lmx.convert.safetensors.reader import SafetensorsFile
from lmx.convert.safetensors.writer import SafetensorsWriter
from lmx.convert.source import ConversionError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(5, dtype=np.float16),
    "c": np.arange(4).reshape(1, 2, 2).astype(ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(2.5, np.float32),
}


def written(tmp_path, header, data=b"", *, length=None, name="x.safetensors"):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / name
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_what_the_library_wrote_is_read_bit_by_bit(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(ARRAYS, {"format": "pt"}))
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert file.entries.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = file.read(file.entries[name])
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
    np.testing.assert_array_equal(file.read(file.entries["a"], 12, (1, 3)), ARRAYS["a"][1:])
    file.close()


def test_the_library_reads_what_was_written_in_parts_and_out_of_order(tmp_path):
    path = tmp_path / "x.safetensors"
    writer = SafetensorsWriter(path, {name: (array.shape, array.dtype.name) for name, array in ARRAYS.items()})
    writer.write("c", ARRAYS["c"])
    writer.write("a", ARRAYS["a"][1:], start=1)
    writer.write("a", ARRAYS["a"][:1])
    for name in ("b", "empty", "scalar"):
        writer.write(name, ARRAYS[name])
    writer.close(durable=True)
    found = {name: bytes(entry["data"]) for name, entry in safetensors.deserialize(path.read_bytes())}
    assert found == {name: array.tobytes() for name, array in ARRAYS.items()}
    with pytest.raises(FileExistsError):
        SafetensorsWriter(path, {})


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry()}, b"1234567", "ends at byte .* it was cut short"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "overlaps 'a'"),
        ({"a": entry(offsets=(4, 12))}, bytes(12), "bytes .* belong to no tensor"),
        ({"a": entry()}, bytes(9), "1 bytes behind its last tensor"),
        ({"a": entry(shape=(3,))}, bytes(8), "occupies 8 bytes, but F32 of the shape .* takes 12"),
        ({"a": entry(shape=(-2,))}, bytes(8), "sizes from 0 on"),
        ({"a": entry(shape=(True, 2))}, bytes(8), "sizes from 0 on"),
        ({"a": entry(shape=(1,) * 9)}, bytes(4), "at most 8 sizes"),
        ({"a": entry(offsets=(8, 0))}, bytes(8), "data_offsets"),
        ({"a": entry(dtype="Q4_K")}, bytes(8), "unknown dtype 'Q4_K'"),
        ({"a": entry() | {"extra": 1}}, bytes(8), "and nothing else"),
        ({"a": 3}, b"", "must be described by"),
        ({"__metadata__": {"a": 3}}, b"", "must map strings to strings"),
        ([1, 2], b"", "holds a JSON list"),
        (b'{"a": {}, "a": {}}', b"", "'a' stands there twice"),
        (b"[" * 100_000, b"", "nested too deeply"),
        (b"\xff{}", b"", "not valid JSON"),
        (b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}', b"", "5000 digits"),
    ],
)
def test_a_header_that_lies_is_one_sentence(tmp_path, header, data, message):
    with pytest.raises(ConversionError, match=message) as caught:
        SafetensorsFile(written(tmp_path, header, data))
    assert "\n" not in str(caught.value) and "x.safetensors" in str(caught.value)


def test_a_length_beyond_the_file_allocates_nothing(tmp_path):
    path = written(tmp_path, {}, length=2**63)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="announces a header of 9223372036854775808 bytes but has 10"):
        SafetensorsFile(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    path.write_bytes(b"1234567")
    with pytest.raises(ConversionError, match="has 7 bytes"):
        SafetensorsFile(path)


def test_a_pipe_or_a_directory_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConversionError, match="not a regular file"):
        SafetensorsFile(tmp_path / "pipe")
    with pytest.raises(ConversionError, match="not a regular file"):
        SafetensorsFile(tmp_path)


def test_a_file_that_shrinks_after_opening_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(ARRAYS))
    file = SafetensorsFile(path)
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(ConversionError, match="cut short since it was opened"):
        for name in ARRAYS:
            file.read(file.entries[name])
    file.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), cut=st.integers(0, 400))
def test_damaged_files_are_refused_in_a_sentence_or_read_within_their_size(tmp_path, edits, cut):
    data = bytearray(save(ARRAYS))
    for position, value in edits:
        data[position % len(data)] = value
    path = tmp_path / "x.safetensors"
    path.write_bytes(bytes(data[: max(0, len(data) - cut)]) if cut < 200 else bytes(data))
    try:
        file = SafetensorsFile(path)
    except ConversionError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert sum(entry.end - entry.begin for entry in file.entries.values()) <= path.stat().st_size
    file.close()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.sampled_from(["F32", "BF16", "I64", "F4", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), _JSON), data=st.binary(max_size=40))
def test_headers_of_any_json_are_refused_in_a_sentence_or_fit_the_file(tmp_path, header, data):
    try:
        file = SafetensorsFile(written(tmp_path, header, data))
    except ConversionError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert sum(entry.end - entry.begin for entry in file.entries.values()) == len(data)
    file.close()
