"""Atomic files, JSON lines that can be cut back, and the lock on a working directory."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from lmx.core import storage
from lmx.core.errors import LockedError

HOLD_LOCK = """
import sys, time
from lmx.core import storage
with storage.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""

LOCK_AND_FORK = """
import os, sys, time
from lmx.core import storage
with storage.lock(sys.argv[1]):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.as_path("runs/../here")) == str(tmp_path / "here")
    assert str(storage.as_path("~/x")) == os.path.expanduser("~/x")
    assert str(storage.as_path("gs://bucket/run")) == "gs://bucket/run"


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    storage.write_json(path, {"version": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_json(path, {"version": 2})
    assert storage.read_json(path) == {"version": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_json_that_was_cut_short_is_named_with_its_size(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2')
    with pytest.raises(ValueError, match=r"a\.json \(11 bytes\) is not valid JSON.*cut short"):
        storage.read_json(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.json"):
        storage.read_json(tmp_path / "missing.json")


def test_text_that_utf8_cannot_hold_is_written_escaped_and_read_back_from_json(tmp_path):
    storage.write_json(tmp_path / "a.json", {"answer": "né\ud800"})
    assert storage.read_json(tmp_path / "a.json") == {"answer": "né\ud800"}
    storage.write_text(tmp_path / "a.html", "né\ud800")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "né\\ud800"


def test_json_lines_hold_every_record_and_null_for_what_json_cannot_say(tmp_path):
    path = tmp_path / "deep" / "m.jsonl"
    lines = storage.JsonLines(path)
    lines.append({"step": 1, "loss": float("nan"), "name": "é"})
    lines.append({"step": 2, "list": [1.5, float("inf")]})
    assert storage.read_json_lines(path) == [{"step": 1, "loss": None, "name": "é"}, {"step": 2, "list": [1.5, None]}]
    lines.flush()
    lines.close()


def test_cutting_back_drops_later_steps_and_a_half_written_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 20, "eval": 1}\n{"step": 30}\n{"step": 4')
    assert storage.cut_back(path, 20) == 2
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n{"step": 20, "eval": 1}\n'
    assert storage.cut_back(path, 20) == 0
    assert storage.cut_back(path, -1) == 3
    assert path.read_text() == ""
    assert storage.cut_back(tmp_path / "missing.jsonl", 5) == 0


def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 10}\n{"st\n{"step": 30}\n')
    with pytest.raises(ValueError, match="line 2 of .*m.jsonl"):
        storage.cut_back(path, 20)
    assert path.read_text() == '{"step": 10}\n{"st\n{"step": 30}\n'


def test_a_second_process_is_told_who_holds_the_lock_and_gets_it_when_that_one_is_killed(tmp_path, holder):
    with pytest.raises(LockedError, match=f"in use by process {holder.pid} on .* since .*; wait for it"), storage.lock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with storage.lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f'{{"pid": {os.getpid()}')


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LOCK_AND_FORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        with storage.lock(tmp_path):
            os.kill(worker, 0)  # the worker still lives
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_a_full_disk_is_recognised_in_an_error_and_in_its_causes():
    try:
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write 5 bytes: No space left on device [os_error_code='28']")
        except ValueError as error:
            raise RuntimeError("save failed") from error
    except RuntimeError as error:
        assert storage.is_disk_full(error)
    assert storage.is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert not storage.is_disk_full(OSError(errno.EACCES, "Permission denied"))
