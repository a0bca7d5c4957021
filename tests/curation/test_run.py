"""Running a curation: the same output from one worker and from several, broken input, refusals in one sentence."""

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmx.cli
from configs.data.sample_crawl import get_config
from lmx.core.errors import LockedError, RunError
from lmx.core.storage import lock
from lmx.curation.config import Curation, OutputSet
from lmx.curation.document import Document
from lmx.curation.functions import heuristics, language
from lmx.curation.pipelines.decontaminate import BenchmarkFiles, Decontaminate
from lmx.curation.pipelines.keep_one import ExactDedup
from lmx.curation.pipelines.near_duplicates import NearDedup
from lmx.curation.pipelines.source import JsonPages, WarcPages
from lmx.curation.run import beam_options, choose_runner, curate
from lmx.curation.sample.crawl import page_html
from lmx.data.sources import ArrayRecords

ROOT = Path(__file__).parents[2]


def digests(folder):
    """Every file of an output, by its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


def texts(folder, name="documents"):
    rows = ArrayRecords(path=str(folder / name / "*.arrayrecord")).load("train")
    return {rows[index]["text"] for index in range(len(rows))}


@dataclasses.dataclass(frozen=True)
class Fragile:
    """Breaks on some documents, in a way that nobody foresaw."""

    word: str
    name: str = "fragile"

    def open(self):
        return self.judge

    def judge(self, document: Document):
        if self.word in document.text:
            raise KeyError(f"no {self.word}")
        return document


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonPages(path=str(path))


def mini(source, *steps, **fields):
    return Curation(name="mini", source=source, steps=steps, outputs=(OutputSet(shards=2),), **fields)


def test_two_worker_processes_give_the_same_bytes_as_one_and_fetch_nothing(tmp_path):
    """The whole sample pipeline, in a process whose every connection beyond this machine would be an error."""
    script = tmp_path / "launch.py"
    script.write_text(
        "import socket, sys\n"
        "connect = socket.getaddrinfo\n"
        "def refused(host, *rest, **more):\n"
        "    if host not in ('localhost', '127.0.0.1', '::1', None): raise AssertionError(f'looked up {host}')\n"
        "    return connect(host, *rest, **more)\n"
        "socket.getaddrinfo = refused\n"
        "import lmx.cli\n"
        "if __name__ == '__main__': sys.exit(lmx.cli.main(sys.argv[1:]))\n"
    )
    file = ROOT / "configs" / "data" / "sample_crawl.py"
    command = [sys.executable, str(script), "curate", str(file), "--set", "source.blocks=1", "--output", str(tmp_path / "two")]
    options = ["--", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "near_dedup" in done.stdout and "card:" in done.stdout and "step 4/16" in done.stderr
    assert "prism" not in done.stderr.lower()
    config = get_config()
    curate(dataclasses.replace(config, source=dataclasses.replace(config.source, blocks=1)), tmp_path / "one")
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_the_order_and_the_division_of_the_input_do_not_matter(tmp_path):
    rows = [{"text": f"text number {n} " * 3, "url": f"https://a.example/{n}"} for n in range(30)] + [
        {"text": "text number 3 " * 3}
    ]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a" / "all.jsonl", rows)
    write(tmp_path / "b" / "1.jsonl", rows[20:])
    with gzip.open(tmp_path / "b" / "2.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows[:20][::-1])
    steps = (ExactDedup(), NearDedup())
    for name in "ab":
        curate(mini(JsonPages(path=str(tmp_path / name / "*")), *steps), tmp_path / f"out{name}")
    a, b = (digests(tmp_path / f"out{name}") for name in "ab")
    assert {name: a[name] for name in a if "arrayrecord" in name or "dropped" in name} == {
        name: b[name] for name in b if "arrayrecord" in name or "dropped" in name
    }


def test_warc_files_are_read_and_damaged_files_cost_what_is_damaged(tmp_path):
    def record(url, body):
        block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body.encode()
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Length: {len(block)}\r\n\r\n"
        return gzip.compress(head.encode() + block + b"\r\n\r\n")

    pages = [record(f"https://a.example/{n}", page_html("T", [f"The river number {n} runs to the sea."], "a")) for n in range(4)]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(pages[:2]) + pages[2][:-30])
    card = curate(mini(WarcPages(path=str(tmp_path / "*.warc.gz")), most_set_aside=0.5), tmp_path / "out")
    assert card.steps[0].documents_in == 3 and card.steps[0].set_aside == {"warc_cut_short": 1} and card.documents("documents") == 2
    lines = [json.dumps({"text": hashlib.sha256(bytes([n])).hexdigest()}).encode() + b"\n" for n in range(200)]
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(lines))[:4000])
    card = curate(mini(JsonPages(path=str(tmp_path / "b.jsonl.gz"))), tmp_path / "out2")
    assert card.steps[0].set_aside["file_damaged"] == 1 and 50 < card.documents("documents") < 150


def test_a_step_that_breaks_on_a_document_sets_it_aside_and_one_that_breaks_on_most_stops_the_run(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": f"word{n} and more"} for n in range(20)])
    card = curate(mini(source, Fragile("word7 "), most_set_aside=0.1), tmp_path / "out")
    assert card.step("fragile").set_aside == {"KeyError": 1} and len(texts(tmp_path / "out")) == 19
    [line] = (path.read_text() for path in (tmp_path / "out" / "set_aside").iterdir())
    assert json.loads(line)["detail"] == "KeyError: 'no word7 '" and json.loads(line)["step"] == "fragile"
    with pytest.raises(RunError, match="'fragile' could not process 20 of 20 records.*for example KeyError: KeyError: 'no and'"):
        curate(mini(source, Fragile("and")), tmp_path / "out2")
    assert not (tmp_path / "out2").exists() and (tmp_path / "out2.incomplete").exists()


def test_an_output_is_never_overwritten_and_what_a_killed_run_left_is_cleared(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "some text"}])
    (tmp_path / "out.incomplete" / "documents").mkdir(parents=True)
    (tmp_path / "out.incomplete" / "documents" / "part-00009.arrayrecord").write_bytes(b"half")
    curate(mini(source), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["card.json", "card.md", "config.json", "documents"]
    assert not (tmp_path / "out.incomplete").exists() and len(list((tmp_path / "out" / "documents").iterdir())) == 1
    with pytest.raises(ValueError, match="exists already; curate writes into a new folder"):
        curate(mini(source), tmp_path / "out")


def test_two_runs_do_not_write_the_same_folder(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "some text"}])
    with lock(tmp_path / "out.incomplete"), pytest.raises(LockedError, match=f"in use by process {os.getpid()}"):
        curate(mini(source), tmp_path / "out")
    curate(mini(source), tmp_path / "out")
    assert not (tmp_path / "out" / ".lock").exists()


def test_components_that_are_not_complete_stop_the_run(tmp_path):
    letters = [f"{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    rows = [{"text": " ".join(letters[n : n + 30])} for n in range(30)]  # each is like its neighbours: a chain
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(RunError, match="components of the step 'near_dedup' are not complete.*set its `rounds` higher"):
        curate(mini(source, NearDedup(rounds=1)), tmp_path / "out")
    curate(mini(source, NearDedup(rounds=5)), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no file matches"), ("", "the source is empty: 1 files match"), ("\n\n", "the source is empty: it gave no record")],
)
def test_an_empty_source_is_told(tmp_path, content, message):
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises((ValueError, RunError), match=message):
        curate(mini(JsonPages(path=str(tmp_path / "in.jsonl"))), tmp_path / "out")


def test_a_corpus_of_which_nothing_is_left_is_told_with_the_step_that_took_it(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "too short"}])
    step = heuristics.Heuristics(rules=(heuristics.WordCount(least=5),))
    with pytest.raises(RunError, match="no document is left; most were lost in the step 'heuristics' \\(few_words 1\\)"):
        curate(mini(source, step), tmp_path / "out")


def test_missing_benchmarks_are_told_before_anything_runs(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "some text"}])
    with pytest.raises(ValueError, match="no file matches"):
        curate(mini(source, Decontaminate(items=BenchmarkFiles(path=str(tmp_path / "none.jsonl")))), tmp_path / "out")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: mini(s, language.Language(), language.Language()), "second step called 'language'"),
        (lambda s: mini(s, language.Language), "steps.0 must be a step"),
        (lambda s: mini(s, language.Language(name="read")), "second step called 'read'"),
        (lambda s: mini(s, language.Language(name="a b")), "steps.0.name is 'a b'"),
        (lambda s: mini("pages"), "source must have `read` and `check`"),
        (lambda s: mini(s, most_set_aside=2.0), "most_set_aside=2.0"),
        (lambda s: Curation(name="a/b", source=s, steps=()), "name='a/b' names a folder"),
        (lambda s: Curation(name="x", source=s, steps=(), outputs=()), "outputs has the sets none"),
        (lambda s: OutputSet(name="dropped"), "curation uses itself"),
        (lambda s: OutputSet(shards=0), "shards=0"),
        (lambda s: mini(s).step("langauge"), "there is no step 'langauge'"),
    ],
)
def test_a_config_that_is_wrong_is_told_in_a_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make(JsonPages(path="x"))


def test_options_of_beam_are_checked_and_the_local_runner_is_the_one_in_the_package():
    with pytest.raises(ValueError, match="no option --direct_number"):
        beam_options(["--direct_number=2"])
    with pytest.raises(ValueError, match="does not understand"):
        beam_options(["--direct_num_workers=many"])
    for arguments in ([], ["--runner=DirectRunner"]):
        assert type(choose_runner(beam_options(arguments))).__name__ == "FnApiRunner"
    assert choose_runner(beam_options(["--runner=FlinkRunner"])) == "FlinkRunner"


def test_the_verb_tells_mistakes_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lmx"), "handlers", [])
    for number, (content, message) in enumerate(
        (
            ("x = 1\n", "defines no get_config()"),
            ("def get_config():\n    return 3\n", "gives a int, expected an lmx.curation.config.Curation"),
            ("from configs.data.sample_crawl import get_config\n", "exists already"),
        )
    ):
        file = tmp_path / f"curation_file_{number}.py"
        file.write_text(content)
        assert lmx.cli.main(["curate", str(file), "--output", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    assert lmx.cli.main(["curate", str(file), "--set", "source.blocks=0", "--output", str(tmp_path / "new")]) == 2
    assert "blocks=0" in capsys.readouterr().err
