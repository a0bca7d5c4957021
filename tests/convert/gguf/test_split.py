"""Models in several files, split by the gguf package."""

import shutil

import numpy as np
import pytest

from lmx.convert.gguf.split import read_model
from lmx.convert.source import ConversionError

_TENSORS = {f"t{index}": np.full((2, 4), index, np.float32) for index in range(5)}


@pytest.fixture
def parts(write_gguf, tmp_path):
    write_gguf("llama", {"context_length": 64}, _TENSORS, split_max_tensors=2)
    return sorted(tmp_path.glob("*.gguf"))


def test_all_parts_are_read_from_any_of_them(parts):
    assert [part.name for part in parts] == [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for part in parts:
        model = read_model(part)
        assert model.tensors.keys() == _TENSORS.keys()
        assert model.paths == tuple(parts)
        assert model.metadata["llama.context_length"] == 64


def test_a_missing_part_is_named(parts):
    parts[1].unlink()
    with pytest.raises(ConversionError, match="the first is model-00002-of-00003.gguf"):
        read_model(parts[0])


def test_a_part_under_another_name_is_refused(parts, tmp_path):
    renamed = tmp_path / "renamed.gguf"
    parts[0].rename(renamed)
    with pytest.raises(ConversionError, match="one of 3 files"):
        read_model(renamed)


def test_mixed_up_parts_are_refused(parts):
    shutil.copy(parts[2], parts[1])
    with pytest.raises(ConversionError, match="says it is part 3 of 3, but by its name it is part 2"):
        read_model(parts[0])
