"""Running a curation: checks, preparation, the graph on a Beam runner, the card, and the folder's name once all is there."""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, WorkerOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineState

from lmx.core.errors import RunError
from lmx.core.fingerprint import fingerprint
from lmx.core.logging import logger
from lmx.core.serialize import to_json
from lmx.core.storage import lock
from lmx.curation import card as cards
from lmx.curation import storage
from lmx.curation.card import Card
from lmx.curation.config import Curation
from lmx.curation.pipelines import graph, sink
from lmx.curation.pipelines.progress import Progress

CARD = "card.json"
_LOCK = ".lock"
_LOCAL = (None, "DirectRunner", "direct", "directrunner", "FnApiRunner", "fnapirunner")
_POLL = 2_000  # milliseconds between two looks at a remote job


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files that steps prepare, in the folder that is being written."""

    root: str

    def put(self, name: str, data: bytes) -> str:
        """As `Resources.put`."""
        path = storage.join(self.root, "work", name)
        storage.write_bytes(path, data)
        return path

    def tell(self, message: str) -> None:
        """As `Resources.tell`."""
        logger.info("%s", message)


def beam_options(arguments: Sequence[str]) -> PipelineOptions:
    """Beam's options.

    Raises:
      ValueError: Beam knows no such option, or a value that it can't have.
    """
    try:
        options = PipelineOptions(list(arguments))
        known = options.get_all_options()
        unknown = sorted(set(options.get_all_options(retain_unknown_options=True)) - set(known))
    except SystemExit as error:  # argparse, which has printed its complaint
        raise ValueError(
            f"Beam does not understand the options {' '.join(arguments)}; `lmx curate --help` tells how to pass them"
        ) from error
    if unknown:
        raise ValueError(
            f"Beam has no option --{unknown[0]}; options of the runner follow after `--`, those of lmx stand before it"
        )
    return options


def choose_runner(options: PipelineOptions) -> Any:
    """The runner: Beam's portable local one unless the options name another.

    Beam's own default, `DirectRunner`, would try to download the Prism runner's binary; this one is in the package, and runs
    in several processes with --direct_num_workers=N --direct_running_mode=multi_processing.
    """
    if (name := options.view_as(StandardOptions).runner) not in _LOCAL:
        return name
    worker = options.view_as(WorkerOptions)
    if hasattr(worker, "default_sdk_harness_log_level") and worker.default_sdk_harness_log_level is None:
        worker.default_sdk_harness_log_level = "WARNING"
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


def check(curation: Curation) -> None:
    """Raises ValueError, one sentence, when the inputs of a curation are not there or its config has no fingerprint."""
    fingerprint(curation)
    curation.source.check()
    for step in curation.steps:
        if hasattr(step, "check"):
            step.check()


def prepared(curation: Curation, folder: Folder) -> Curation:
    """The curation with classifiers trained and tables built."""
    steps = tuple(step.prepare(folder) if hasattr(step, "prepare") else step for step in curation.steps)
    return dataclasses.replace(curation, steps=steps)


def curate(curation: Curation, output: str | os.PathLike[str], beam_arguments: Sequence[str] = ()) -> Card:
    """Runs a curation and gives its folder the name `output` when everything is there.

    The folder holds a folder of ArrayRecord shards for each output set, `dropped/` (what left, and why), `set_aside/` (what could
    not be processed), `card.json`, `card.md` and `config.json`. Until then it is called `OUTPUT.incomplete`.

    Args:
      curation: what to do.
      output: a folder that does not exist, on any filesystem of Beam.
      beam_arguments: options of Beam, such as ["--direct_num_workers=2", "--direct_running_mode=multi_processing"].

    Returns:
      The card.

    Raises:
      ValueError: the config, the input or the options are wrong, or the folder exists.
      LockedError: another process is writing the same folder.
      RunError: the run could not go to its end, or its result must not be used; `OUTPUT.incomplete` is left for a look.
    """
    target = storage.absolute(output)
    if storage.exists(target if storage.is_local(target) else storage.join(target, CARD)):
        raise ValueError(f"{target} exists already; curate writes into a new folder, so choose another one or remove it")
    options = beam_options(beam_arguments)
    check(curation)
    started = time.monotonic()
    temporary = f"{target}.incomplete"
    with lock(temporary, _LOCK) if storage.is_local(temporary) else contextlib.nullcontext():
        storage.clear(temporary, keep=_LOCK)
        card = _write(curation, temporary, options)
        storage.remove(storage.join(temporary, "work"))
        storage.remove(storage.join(temporary, _LOCK))
        storage.publish(temporary, target, last=(CARD,))
    _summary(card, target, seconds=time.monotonic() - started)
    return card


def _write(curation: Curation, temporary: str, options: PipelineOptions) -> Card:
    """Prepares and runs the graph, and writes the card."""
    names = graph.step_names(curation)
    progress = Progress(names, functools.partial(logger.info, "%s"))
    ready = prepared(curation, Folder(temporary))
    pipeline = beam.Pipeline(runner=choose_runner(options), options=options)
    graph.build(pipeline, ready, temporary)
    _run(pipeline, progress)
    return _finish(curation, temporary, names)


def _run(pipeline: beam.Pipeline, progress: Progress) -> None:
    with progress.watching():
        try:
            result = pipeline.run()
            while not PipelineState.is_terminal(state := result.state):
                result.wait_until_finish(duration=_POLL)
        except Exception as error:  # whatever a runner or a step raises, with a whole stack of processes in its text
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            told = next((line for line in reversed(lines) if _is_told(line)), lines[-1] if lines else type(error).__name__)
            raise RunError(f"the curation failed: {told[:600]} (--debug shows where)") from error
    if state != PipelineState.DONE:
        raise RunError(f"the curation ended as {state}; the runner's own log tells why")


def _is_told(line: str) -> bool:
    """Whether a line of a traceback is its last: "ValueError: what is wrong"."""
    kind, colon, _ = line.partition(": ")
    return bool(colon) and kind.rsplit(".", 1)[-1].endswith(("Error", "Exception", "Exit"))


def _finish(curation: Curation, temporary: str, names: Sequence[str]) -> Card:
    """Writes the card, if the result may be used."""
    path = storage.join(temporary, sink.STATISTICS)
    statistics = json.loads(storage.read_bytes(path)) if storage.exists(path) else []
    card, problems = cards.make_card(curation, statistics, names)
    if problems:
        raise RunError("; ".join(problems))
    storage.remove(path)
    for name, text in (
        ("config.json", _json(to_json(curation))),
        ("card.md", cards.markdown(card)),
        (CARD, _json(dataclasses.asdict(card))),
    ):
        storage.write_bytes(storage.join(temporary, name), text.encode("utf-8", "backslashreplace"))
    return card


def _json(tree: Any) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"


def _summary(card: Card, target: str, *, seconds: float, write: Callable[[str], object] = print) -> None:
    width = os.get_terminal_size().columns if sys.stdout.isatty() else None
    read = card.steps[0].documents_in
    write(cards.table(card, width=width))
    write(f"{read:,} records in {seconds:.1f} s ({read / max(seconds, 1e-9):,.0f}/s); card: {storage.join(target, 'card.md')}")
