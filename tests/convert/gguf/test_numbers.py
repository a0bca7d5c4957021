"""Numbers of every type against the gguf package."""

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import quants

from lmx.convert.gguf import numbers
from lmx.convert.gguf.header import StoredTensor, read_header
from lmx.convert.reading import OffsetReader
from lmx.convert.source import ConversionError

_READABLE = [kind for kind in Type if numbers.is_readable(kind)]


def _stored(path, kind, shape, rng) -> tuple[StoredTensor, np.ndarray]:
    """A tensor of random blocks alone in a file, and its bytes by lines; scales are kept finite."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 100, (*shape[:-1], shape[-1] // block * block_bytes), np.uint8)
    path.write_bytes(b"x" * 32 + data.tobytes())
    return StoredTensor("t", shape, kind, path, 32, data.nbytes), data


def test_all_types_that_the_package_dequantises_are_readable():
    assert {
        Type.F32,
        Type.F16,
        Type.BF16,
        Type.Q4_0,
        Type.Q5_1,
        Type.Q8_0,
        Type.Q2_K,
        Type.Q6_K,
        Type.IQ1_M,
        Type.IQ4_XS,
        Type.TQ1_0,
        Type.MXFP4,
    } <= set(_READABLE)


@pytest.mark.parametrize("kind", _READABLE, ids=lambda kind: kind.name)
def test_rows_are_those_of_the_gguf_package(tmp_path, kind):
    shape = (5, 3, 512)
    tensor, data = _stored(tmp_path / "t", kind, shape, np.random.default_rng(0))
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data, kind).reshape(shape)
    file = OffsetReader(tensor.path)
    rows = numbers.read_rows(file, tensor, 1, 4)
    file.close()
    assert rows.dtype == numbers.describe(tensor).dtype
    np.testing.assert_array_equal(rows.astype(np.float32), expected[1:4])


def test_a_quantised_vector_may_be_read_from_within_a_block(tmp_path):
    tensor, data = _stored(tmp_path / "t", Type.Q8_0, (96,), np.random.default_rng(0))
    file = OffsetReader(tensor.path)
    np.testing.assert_array_equal(numbers.read_rows(file, tensor, 40, 70), quants.dequantize(data, Type.Q8_0)[40:70])
    file.close()


def test_a_large_tensor_is_dequantised_in_parts_to_the_same_numbers(tmp_path, monkeypatch):
    tensor, data = _stored(tmp_path / "t", Type.Q4_0, (7, 640), np.random.default_rng(0))
    monkeypatch.setattr(numbers, "_CHUNK_NUMBERS", 96)
    file = OffsetReader(tensor.path)
    np.testing.assert_array_equal(numbers.read_rows(file, tensor, 0, 7), quants.dequantize(data, Type.Q4_0))
    file.close()


@pytest.mark.parametrize("kind", [Type.I32, Type.F64, Type.Q8_1], ids=lambda kind: kind.name)
def test_types_that_are_no_weights_are_refused_by_name(tmp_path, kind):
    tensor, _ = _stored(tmp_path / "t", kind, (2, 64), np.random.default_rng(0))
    with pytest.raises(ConversionError, match=f"'t' is of type {kind.name}"):
        numbers.describe(tensor)


def test_a_file_cut_while_it_is_read_is_refused(tmp_path):
    tensor, _ = _stored(tmp_path / "t", Type.F32, (4, 8), np.random.default_rng(0))
    file = OffsetReader(tensor.path)
    tensor.path.write_bytes(b"x" * 100)
    with pytest.raises(ConversionError, match="cut short since it was opened"):
        numbers.read_rows(file, tensor, 0, 4)
    file.close()


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_encoding_is_that_of_the_gguf_package(kind, dtype):
    rows = np.random.default_rng(0).normal(size=(5, 64)).astype(dtype)
    expected = quants.quantize(rows.astype(np.float32), kind)
    assert numbers.encode(rows.T.copy().T, kind, "t").tobytes() == expected.tobytes()


def test_numbers_too_large_for_the_type_are_refused():
    rows = np.array([[1.0, 70_000.0] * 16], np.float32)
    with pytest.raises(ConversionError, match="'t' holds 70000, too large for F16"):
        numbers.encode(rows, Type.F16, "t")
    with pytest.raises(ConversionError, match="too large for Q8_0"):
        numbers.encode(rows * 1000, Type.Q8_0, "t")
    assert np.isinf(numbers.encode(np.full((1, 32), np.inf, np.float32), Type.F16, "t")).all()


def test_the_header_describes_what_the_package_wrote(write_gguf):
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    path = write_gguf("llama", {}, {"t": quants.quantize(values, Type.Q8_0)}, {"t": Type.Q8_0})
    tensor = read_header(path).tensors["t"]
    file = OffsetReader(path)
    np.testing.assert_array_equal(
        numbers.read_rows(file, tensor, 0, 4), quants.dequantize(quants.quantize(values, Type.Q8_0), Type.Q8_0)
    )
    file.close()
    assert tensor.shape == (4, 64)
