"""The embedded corpus: what is in it, its splits, its preparation."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmx.data.python_corpus import collect
from lmx.data.python_corpus.python_corpus_dataset_builder import corpus_config
from lmx.data.sources import PythonCorpus, Tfds

ROOT = Path(__file__).parent.parent.parent
PREPARE = """
import sys
from pathlib import Path
from lmx.data.sources import PythonCorpus
print(len(PythonCorpus(kind="prose", cache=Path(sys.argv[1])).load("train")), "tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have prepared the prose at the same time."""
    directory = tmp_path_factory.mktemp("cache")
    commands = [[sys.executable, "-c", PREPARE, str(directory)] for _ in range(2)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    (directory / "output").write_text("".join(outputs[0]))
    return directory


def test_two_processes_prepare_it_at_once_quietly_and_without_tensorflow(cache: Path) -> None:
    count, tensorflow = (cache / "output").read_text().split()
    assert int(count) > 300 and tensorflow == "False"
    assert not list(cache.rglob("incomplete*"))


def test_splits_are_disjoint_by_document_and_texts_are_not_repeated(cache: Path) -> None:
    source = PythonCorpus(kind="prose", cache=cache)
    train, heldout = ([rows[index] for index in range(len(rows))] for rows in (source.load("train"), source.load("heldout")))
    assert {row["name"] for row in train}.isdisjoint(row["name"] for row in heldout)
    assert {row["text"] for row in train}.isdisjoint(row["text"] for row in heldout)
    assert sum(len(row["text"]) for row in train) > 1_500_000 and sum(len(row["text"]) for row in heldout) > 50_000
    assert {row["kind"] for row in train} == {"topic", "docstrings"}


def test_it_is_read_by_its_tfds_name_too(cache: Path) -> None:
    name = f"python_corpus/{corpus_config('prose').name}"
    rows = Tfds(name=name, heldout="heldout", data_dir=cache).load("heldout")
    assert rows[0] == PythonCorpus(kind="prose", cache=cache).load("heldout")[0]
    with pytest.raises(ValueError, match="cannot be read"):
        Tfds(name=name, heldout="test", data_dir=cache).load("heldout")


def test_code_is_the_standard_library_without_tests_and_tables() -> None:
    names = [name for name, _ in collect.files()]
    assert {"json", "json.decoder", "typing"} <= set(names)
    assert not [
        name for name in names if {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"} & set(name.split("."))
    ]
    assert len(names) == len(set(names))


def test_docstrings_stand_in_order_under_their_qualified_names() -> None:
    source = (
        '"""Top."""\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f.\n\n        More."""\nasync def g(): "Of g."\n'
    )
    assert list(collect.docstrings("m", source)) == [("m", "Top."), ("m.A", "Of A."), ("m.A.f", "Of f.\n\nMore."), ("m.g", "Of g.")]
    assert list(collect.docstrings("m", "print 'another Python'")) == []


def test_topics_that_are_part_of_another_or_equal_to_one_are_left_out() -> None:
    section = "The if statement\n{0}\n\nIt is used for conditional execution.\n"
    topics = {
        "if": section.format("****************"),
        "compound": "All.\n\n" + section.format("================"),
        "b": "Same.",
        "a": "Same.",
    }
    assert list(collect.distinct(topics)) == ["a", "compound"]


def test_a_repeated_docstring_appears_once(monkeypatch: pytest.MonkeyPatch) -> None:
    docstring = "The same words in two places, long enough to be kept as a document of its own."
    sources = [("a", f'"""{docstring}"""'), ("b", f'"""{docstring}"""\nclass C:\n    """{docstring[::-1]}"""')]
    monkeypatch.setattr(collect, "_sources", lambda packages: iter(sources))
    documents = {document.name: document.text for document in collect.prose() if document.kind == "docstrings"}
    assert documents == {"a": f"a\n\n{docstring}\n", "b": f"b.C\n\n{docstring[::-1]}\n"}


def test_packages_join_only_when_asked_for_and_change_the_fingerprint() -> None:
    with_package = dict(collect.files(("hypothesis",)))
    assert "hypothesis.strategies" in with_package and "hypothesis" not in dict(collect.files())
    assert collect.corpus_fingerprint(("hypothesis",)) != collect.corpus_fingerprint()
    with pytest.raises(ValueError, match="'no_such_package' is not an installed package"):
        collect.files(("no_such_package",))


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be prepared in .*file.*name another directory in `cache`"):
        PythonCorpus(kind="prose", cache=tmp_path / "file").load("train")
