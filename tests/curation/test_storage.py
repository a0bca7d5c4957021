"""A curation on a filesystem that is not local: an object store, played by a folder behind a scheme of Beam's."""

import json
import os
from typing import Any

import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from lmx.curation import storage
from lmx.curation.config import Curation, OutputSet
from lmx.curation.pipelines.classify import Classifier, Topic
from lmx.curation.pipelines.keep_one import ExactDedup
from lmx.curation.pipelines.source import JsonPages
from lmx.curation.run import curate
from lmx.curation.sample.source import TopicLabels
from lmx.data.sources import ArrayRecords

SCHEME = "fake"


class FakeStore(LocalFileSystem):
    """`fake://bucket/a/b` is the file `a/b` of a folder. Folders exist only by what is in them, and can't be renamed."""

    root = ""

    @classmethod
    def scheme(cls) -> str:
        return SCHEME

    @classmethod
    def local(cls, path: str) -> str:
        assert path.startswith(f"{SCHEME}://bucket"), path
        return cls.root + path[len(f"{SCHEME}://bucket") :]

    def join(self, base: str, *paths: str) -> str:
        return "/".join([base.rstrip("/"), *paths])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def mkdirs(self, path: str) -> None:
        raise AssertionError("an object store has no folders to be made")

    def has_dirs(self) -> bool:
        return False

    def _list(self, dir_or_prefix: str) -> Any:
        for folder, _, files in os.walk(self.local(dir_or_prefix.rstrip("/"))):
            for name in files:
                path = os.path.join(folder, name)
                where = f"{SCHEME}://bucket{path[len(self.root) :]}"
                yield FileMetadata(where, os.path.getsize(path), os.path.getmtime(path))

    def create(self, path: str, *args: Any, **kwargs: Any) -> Any:
        os.makedirs(os.path.dirname(self.local(path)), exist_ok=True)
        return super().create(self.local(path), *args, **kwargs)

    def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().open(self.local(path), *args, **kwargs)

    def exists(self, path: str) -> bool:
        return os.path.isfile(self.local(path))

    def metadata(self, path: str) -> Any:
        return FileMetadata(path, os.path.getsize(self.local(path)))

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            assert os.path.isfile(self.local(source))
            os.makedirs(os.path.dirname(self.local(target)), exist_ok=True)
            os.rename(self.local(source), self.local(target))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            for item in list(self._list(path)) if path.endswith("/") else [FileMetadata(path, 0)]:
                os.remove(self.local(item.path))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_input_output_and_prepared_files_can_lie_on_an_object_store(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeStore, "root", str(tmp_path))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n % 7}"}) + "\n" for n in range(10)) + "broken\n")
    (tmp_path / "out.incomplete").mkdir()
    (tmp_path / "out.incomplete" / "stale.jsonl").write_text("left by a run that was killed")
    config = Curation(
        name="remote",
        source=JsonPages(path=f"{SCHEME}://bucket/in/*.jsonl"),
        steps=(ExactDedup(), Topic(classifier=Classifier(labels=TopicLabels(count=5)))),
        outputs=(OutputSet(shards=1),),
    )
    card = curate(config, f"{SCHEME}://bucket/out")
    assert card.documents("documents") == 7
    found = files(tmp_path / "out")
    assert {name.partition("/")[0] for name in found} == {
        "card.json",
        "card.md",
        "config.json",
        "documents",
        "dropped",
        "set_aside",
    }
    assert files(tmp_path / "out.incomplete") == []
    assert len(ArrayRecords(path=str(tmp_path / "out" / "documents" / "*.arrayrecord")).load("train")) == 7
    with pytest.raises(ValueError, match="exists already"):
        curate(config, f"{SCHEME}://bucket/out")
    with pytest.raises(ValueError, match="no file matches"):
        storage.matching(f"{SCHEME}://bucket/none/*.jsonl")


def test_a_missing_file_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="nothing.bin cannot be read"):
        storage.read_bytes(str(tmp_path / "nothing.bin"))
