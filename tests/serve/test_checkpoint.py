"""Opening checkpoints: what is one, what is to be converted first, and how it is spread over devices."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from lmx.model.config import ScalarHead
from lmx.pipeline import artifact as artifacts
from lmx.sampling.request import Request, Sampling
from lmx.serve import checkpoint as checkpoints
from lmx.serve.checkpoint import CONTEXT, Checkpoint, open_checkpoint, parse_mesh
from lmx.sharding.mesh import MeshConfig
from lmx.tokenizer.bytes import ByteTokenizer
from tests.fixtures import manifests


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an artifact."""
    path = tmp_path_factory.mktemp("artifact")
    loaded = checkpoint.loaded
    target = epath.Path(path)
    artifacts.write_model(target, config=loaded.model.config, params=loaded.params, tokenizer=loaded.tokenizer, chat=loaded.chat)
    artifacts.write_manifest(target, manifests.finished())
    return path


def test_an_artifact_is_opened_with_its_chat_format(folder: Path, checkpoint: Checkpoint) -> None:
    opened = open_checkpoint(folder)
    assert (opened.name, opened.fingerprint, opened.mesh) == (folder.name, "a" * 64, None)
    assert opened.loaded.chat == checkpoint.loaded.chat and opened.stop_ids == (2,)
    assert opened.context(None) == 256 and opened.context(100) == 100
    with pytest.raises(ValueError, match="--max-length 257 must lie in 2..256"):
        opened.context(257)
    assert CONTEXT == 8192


@pytest.mark.parametrize("mesh", ["data=2", "fsdp=2,tensor=2"])
def test_a_model_spread_over_devices_writes_the_same(folder: Path, checkpoint: Checkpoint, mesh: str) -> None:
    request = Request(prompt=[1, 75, 104], sampling=Sampling(max_new_tokens=8, temperature=0))
    expected = checkpoint.engine(slots=2, max_length=64).run([request])[0][0]
    opened = open_checkpoint(folder, mesh=mesh)
    found = opened.engine(slots=2, max_length=64).run([request])[0][0]
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
    used = {device for leaf in jax.tree.leaves(opened.loaded.params) for device in leaf.sharding.device_set}
    assert len(used) == (2 if mesh == "data=2" else 4)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json", "model.safetensors"], "a Hugging Face checkpoint"),
        (["config.json", "tokenizer.json"], "a Hugging Face checkpoint"),
        (["params.json", "consolidated.00.pth"], "Meta's original layout"),
        (["model.gguf"], "GGUF"),
    ],
)
def test_checkpoints_of_others_are_to_be_converted_first(tmp_path: Path, files: list[str], kind: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ValueError) as caught:
        open_checkpoint(tmp_path)
    assert (
        str(caught.value) == f"{tmp_path} is {kind}, not an artifact of lmx: run `lmx convert {tmp_path} DIR` first, then use DIR"
    )
    if kind == "GGUF":
        with pytest.raises(ValueError, match="is GGUF, not an artifact"):
            open_checkpoint(tmp_path / files[0])


def test_a_folder_that_is_nothing_and_one_that_is_not_there_say_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not an artifact of lmx: it has no manifest.json"):
        open_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="there is no artifact at"):
        open_checkpoint(tmp_path / "no")


def test_a_reward_model_writes_no_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = artifacts.Artifact.stored_model

    def scalar(self: Any) -> Any:
        model = stored(self)
        return type(model)(**{**vars(model), "config": type(model.config)(**{**vars(model.config), "head": ScalarHead()})})

    monkeypatch.setattr(artifacts.Artifact, "stored_model", scalar)
    with pytest.raises(ValueError, match="holds a reward model, which writes no text"):
        open_checkpoint(folder)


def test_a_mesh_is_read_from_its_axes() -> None:
    assert parse_mesh("data=1,fsdp=2, tensor=4") == MeshConfig(data=1, fsdp=2, tensor=4)
    assert parse_mesh("fsdp=-1") == MeshConfig(fsdp=-1)
    for text in ("", "2", "rows=2", "fsdp=x", "fsdp=1,fsdp=2", "fsdp="):
        with pytest.raises(ValueError, match="--mesh takes sizes of the axes data, fsdp, tensor, such as fsdp=2,tensor=4; found"):
            parse_mesh(text)
    with pytest.raises(ValueError, match="fsdp=0 must be at least 1"):
        parse_mesh("fsdp=0")


def test_a_chat_template_is_chosen_by_name_or_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages[0].content }}")
    assert checkpoints.chosen_chat(str(path), ByteTokenizer()).template == "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="is none of .*chatml.*, and no file"):
        checkpoints.chosen_chat("chatlm", ByteTokenizer())
    with pytest.raises(ValueError, match="the tokenizer has no <.im_end.>, which the chat format 'chatml' ends turns with"):
        checkpoints.chosen_chat("chatml", ByteTokenizer())
    path.write_text("no template")
    with pytest.raises(ValueError, match="is neither Jinja nor one of"):
        checkpoints.chosen_chat(str(path), ByteTokenizer())
