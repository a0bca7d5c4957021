"""Files of torch.save read without torch, and everything in them that is no state dict refused."""

import pickle
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmx.convert.meta.pth import PthFile
from lmx.convert.meta.state import read_state
from lmx.convert.source import ConversionError

_TENSORS = {
    "a": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b": np.arange(5, dtype=np.float16),
    "c": np.arange(12).reshape(3, 2, 2).astype(ml_dtypes.bfloat16),
}


def _sentence(value) -> str:
    """Name of a case: its sentence, not its bytes."""
    return value if isinstance(value, str) else "file"


def _write(tmp_path, data: bytes):
    path = tmp_path / "consolidated.00.pth"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("large", [False, True])
def test_tensors_are_read_by_rows_in_their_own_dtype(tmp_path, torch_format, large):
    file = PthFile(_write(tmp_path, torch_format.checkpoint(_TENSORS, large=large)))
    assert {name: (info.shape, info.dtype) for name, info in file.tensors.items()} == {
        "a": ((4, 6), "float32"),
        "b": ((5,), "float16"),
        "c": ((3, 2, 2), "bfloat16"),
    }
    for name, values in _TENSORS.items():
        rows = file.read(name, 1, 3)
        assert rows.dtype == values.dtype
        np.testing.assert_array_equal(rows, values[1:3])
    file.close()


def test_two_names_of_the_same_numbers_are_noticed(tmp_path, torch_format):
    tensors = {"a": _TENSORS["a"], "again": _TENSORS["a"]}
    file = PthFile(_write(tmp_path, torch_format.checkpoint(tensors, keys={"a": "0", "again": "0"})))
    assert file.copies == {"again": "a"}
    file.close()


class _Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", ["eval", "os.system", "builtins.getattr"])
def test_no_call_is_ever_made(protocol, function):
    name = function.rpartition(".")
    if not name[0]:
        data = pickle.dumps({"a": _Calls(eval, "1 / 0")}, protocol)
    else:
        data = b"c" + name[0].encode() + b"\n" + name[2].encode() + b"\n(S'touch /tmp/called'\ntR."
    with pytest.raises(ValueError, match="nothing was called|does not follow it"):
        read_state(data)


def _pickled(value, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "cannot be read|has no end"),
        (b"\x80\x02}", "cannot be read"),
        (b"\x80\x02.", "is damaged at byte 2"),
        (_pickled([1]), "holds a value of the type list"),
        (_pickled({"a": 1}), "of the type int under the key 'a'"),
        (_pickled({"a": {"b": 1}}), "of the type dict under the key 'a'"),
        (_pickled({1: 2}), "of the type int as a key"),
        (_pickled({("a",): 2}), "of the type tuple as a key"),
        (b"\x80\x02}(X\1\0\0\0aK\1X\1\0\0\0aK\1u.", "the name 'a' occurs twice"),
        (b"\x80\x02}h\5.", "is damaged"),
        (b"\x80\x02((.", "a list ends where a value is expected"),
        (b"\x80\x02(q\0.", "a mark is noted"),
        (b"\x80\x02K\1K\2s.", "is damaged|no dict"),
        (b"\x80\x02]K\1}b.", "no dict"),
        (b"\x80\x02K\1Q.", "no storage of numbers"),
        (b"\x80\x02K\1)R.", "calls what is no function"),
        (b"\x80\x02ccollections\nOrderedDict\nK\1\x85R.", "in a way that torch.save does not"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "in a way that torch.save does not"),
        (b"\x80\x02ctorch\nCharStorage\n.", "torch.CharStorage"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "cannot be read"),
        (b"\xff\xff", "cannot be read"),
    ],
    ids=_sentence,
)
def test_pickles_that_are_no_state_dict_are_refused(data, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        read_state(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "sentence"),
    [
        ((4, 6), (1, 4), 0, "do not lie one after another"),
        ((4, 6), (6,), 0, "shape and strides cannot be"),
        ((4, 0), (1, 1), 0, "shape and strides cannot be"),
        ((4, -6), (6, 1), 0, "shape and strides cannot be"),
        ((4, 6), (6, 1), 1, "in a storage of only 24"),
        ((1 << 30, 1 << 30), (1 << 30, 1), 0, "in a storage of only 24"),
        ((1,) * 9, (1,) * 9, 0, "shape and strides cannot be"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(torch_format, shape, strides, offset, sentence):
    pickled = torch_format.pickle()
    pickled.out.write(b"}(")
    pickled.text("a")
    pickled.tensor("0", "float32", shape, strides, offset, 24)
    pickled.out.write(b"u.")
    with pytest.raises(ValueError, match=sentence):
        read_state(pickled.out.getvalue())


def test_deep_nesting_costs_no_recursion():
    with pytest.raises(ValueError, match="type tuple"):
        read_state(b"\x80\x02)" + b"\x85" * 100_000 + b".")


def test_the_format_before_zip_is_refused_with_advice(tmp_path):
    with pytest.raises(ConversionError, match="before version 1.6.*save it again"):
        PthFile(_write(tmp_path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\0" * 300))


def _entries(torch_format) -> dict[str, bytes]:
    values = {"a": _TENSORS["a"]}
    return {"x/data.pkl": torch_format.state_pickle(values), "x/byteorder": b"little", "x/data/0": values["a"].tobytes()}


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({"x/data/0": b"\0" * 92}, {}, "data/0 has 92 bytes, but 24 numbers of float32 take 96"),
        ({"x/data/0": None}, {}, "data/0, are not in the archive"),
        ({"x/data.pkl": None}, {}, "holds one data.pkl, this archive has 0"),
        ({"y/data.pkl": b"."}, {}, "holds one data.pkl, this archive has 2"),
        ({"x/byteorder": b"big"}, {}, "the byte order b'big'"),
        ({"../evil": b""}, {}, "no plain relative path"),
        ({"/etc/passwd": b""}, {}, "no plain relative path"),
        ({"x/..\\evil": b""}, {}, "no plain relative path"),
        ({}, {"method": 8}, "is compressed"),
        ({}, {"flags": 1}, "is encrypted"),
    ],
)
def test_archives_that_torch_does_not_write_are_refused(tmp_path, torch_format, change, options, sentence):
    entries = {name: data for name, data in (_entries(torch_format) | change).items() if data is not None}
    with pytest.raises(ConversionError, match=sentence) as caught:
        PthFile(_write(tmp_path, torch_format.archive(entries, **options)))
    assert "consolidated.00.pth" in str(caught.value)


def _central(data: bytes, name: bytes) -> int:
    """Where an entry's description in the directory begins."""
    return data.rindex(b"PK\1\2", 0, data.rindex(name))


def test_entries_upon_each_other_or_beyond_the_file_are_refused(tmp_path, torch_format):
    data = torch_format.archive(_entries(torch_format))
    moved = bytearray(data)
    moved[_central(data, b"x/data/0") + 42 : _central(data, b"x/data/0") + 46] = struct.pack("<I", 1 << 30)
    with pytest.raises(ConversionError, match="is not in the file"):
        PthFile(_write(tmp_path, bytes(moved)))
    longer = bytearray(data)
    for field in (20, 24):
        longer[_central(data, b"x/byteorder") + field : _central(data, b"x/byteorder") + field + 4] = struct.pack("<I", 200)
    with pytest.raises(ConversionError, match="overlap|reaches into"):
        PthFile(_write(tmp_path, bytes(longer)))


def test_an_entry_named_twice_is_refused(tmp_path, torch_format):
    data = torch_format.archive(_entries(torch_format) | {"x/data/1": b"\0"}).replace(b"x/data/1", b"x/data/0")
    with pytest.raises(ConversionError, match="'x/data/0' occurs twice"):
        PthFile(_write(tmp_path, data))


def test_a_file_cut_anywhere_is_refused(tmp_path, torch_format):
    data = torch_format.checkpoint(_TENSORS)
    for length in [*range(0, len(data), 37), len(data) - 1]:
        with pytest.raises(ConversionError):
            PthFile(_write(tmp_path, data[:length]))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), large=st.booleans())
def test_no_damage_crashes_the_reader_or_makes_it_allocate(tmp_path, torch_format, data, large):
    content = bytearray(torch_format.checkpoint(_TENSORS, large=large))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 9))
        if data.draw(st.booleans()):
            content[position] ^= data.draw(st.integers(1, 255))
        else:
            absurd = data.draw(st.sampled_from([0, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]))
            content[position : position + 8] = struct.pack("<Q", absurd)
    path = _write(tmp_path, bytes(content))
    tracemalloc.start()
    try:
        file = PthFile(path)
        for name, info in file.tensors.items():
            assert file.read(name, 0, info.shape[0]).shape == info.shape
        file.close()
    except ConversionError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < (2 << 20) + 64 * len(content)
