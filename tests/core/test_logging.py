"""Metric writers: JSON lines, TensorBoard events, progress; and the console's log lines."""

import io
import logging as stdlib_logging
import struct

import pytest
from tensorboardX.proto import event_pb2

from lmx.core import logging, storage


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def console():
    """The lmx logger writing to a string."""
    former = (logging.logger.level, logging.logger.propagate, list(logging.logger.handlers))
    stream = io.StringIO()
    logging.setup(stream=stream)
    yield stream
    logging.logger.setLevel(former[0])
    logging.logger.propagate = former[1]
    logging.logger.handlers[:] = former[2]


def events(directory):
    """All events of a TensorBoard directory, oldest file first."""
    found = []
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return found


def test_a_resumed_metrics_file_goes_on_after_the_restored_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = logging.JsonLinesWriter(path)
    for step in (10, 20, 30):
        first.write(step, {"train/loss": float(step)})
    second = logging.JsonLinesWriter(path, resume_step=20)
    second.write(30, {"train/loss": -1.0})
    assert storage.read_json_lines(path) == [
        {"step": 10, "train/loss": 10.0},
        {"step": 20, "train/loss": 20.0},
        {"step": 30, "train/loss": -1.0},
    ]
    first.close()
    second.close()


def test_tensorboard_gets_the_scalars_and_on_resume_the_step_from_which_to_forget(tmp_path):
    first = logging.TensorBoardWriter(tmp_path)
    first.write(10, {"train/loss": 2.5})
    second = logging.TensorBoardWriter(tmp_path, resume_step=5)
    second.write(6, {"train/loss": 1.5, "eval/loss": 3.5})
    first.close()
    second.close()
    scalars = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events(tmp_path) if e.summary.value]
    assert scalars == [(10, {"train/loss": 2.5}), (6, {"train/loss": 1.5, "eval/loss": 3.5})]
    starts = [e.step for e in events(tmp_path) if e.session_log.status == event_pb2.SessionLog.START]
    assert starts == [0, 6]


def test_without_a_terminal_progress_is_a_log_line_with_loss_speed_and_time_left(console):
    progress = logging.ProgressWriter(name="stage sft", total=100, stream=io.StringIO())
    progress.advance(1)
    progress.write(1, {"train/loss": 2.5})  # nothing is timed yet
    progress.advance(50)
    progress.write(50, {"train/loss": 1.25, "train/grad_norm": 0.5, "train/skipped": 0, "time/tokens_per_second": 3400.0})
    progress.write(50, {"eval/loss": 2.0, "time/eval_seconds": 1.0})
    first, *lines = console.getvalue().splitlines()
    assert first.endswith("stage sft: step 1/100  loss 2.5000")
    assert lines[0].endswith("stage sft: step 50/100  loss 1.2500  grad norm 0.5  3,400 tokens/s  0 s left")
    assert lines[1].endswith("stage sft: step 50/100  eval/loss 2")


def test_on_a_terminal_progress_is_a_bar_with_loss_and_speed():
    stream = Terminal()
    progress = logging.ProgressWriter(name="sft", total=100, initial=40, stream=stream)
    progress.write(50, {"train/loss": 1.25, "time/tokens_per_second": 3400.0})
    progress.flush()
    progress.close()
    assert "50/100" in stream.getvalue()
    assert "loss 1.2500  3,400 tokens/s" in stream.getvalue()


def test_setting_up_twice_prints_once_and_names_only_warnings(console):
    logging.setup(stream=console)
    logging.logger.info("next: 300 steps")
    logging.logger.warning("careful")
    info, warning = console.getvalue().splitlines()
    assert info[8:] == " next: 300 steps"
    assert warning[8:] == " WARNING: careful"


def test_orbax_tracebacks_do_not_reach_the_console_but_other_absl_messages_do(console):
    absl = stdlib_logging.getLogger("absl")
    record = absl.makeRecord("absl", stdlib_logging.ERROR, "/x/site-packages/orbax/checkpoint/m.py", 1, "save failed", (), None)
    other = absl.makeRecord("absl", stdlib_logging.ERROR, "/x/site-packages/grain/m.py", 1, "read failed", (), None)
    assert [bool(absl.filter(item)) for item in (record, other)] == [False, True]


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (-3, "0 s")])
def test_durations_are_written_in_words(seconds, words):
    assert logging._duration(seconds) == words
