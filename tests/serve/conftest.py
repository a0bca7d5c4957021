"""A model on duty: a tiny real one, or one whose engine does as the test says; servers on loopback sockets."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.models import tiny
from lmx.model.decoder import build_model
from lmx.pipeline.artifact import LoadedModel
from lmx.sampling.request import Completion, Event, Request
from lmx.serve import server
from lmx.serve.app import Access, build_app
from lmx.serve.checkpoint import Checkpoint
from lmx.serve.deploy import Deployment, build_service
from lmx.serve.service import Service
from lmx.serve.worker import Worker
from lmx.tokenizer.bytes import ByteTokenizer
from lmx.tokenizer.chat import Chat

CONTEXT = 256
VOCAB = 130  # the specials and ASCII: whatever the model writes is text
TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@dataclasses.dataclass(eq=False)
class ScriptedEngine:
    """Answers every request with "abcdef...", a letter a step, as soon and as long as it may.

    Attributes:
      slots: samples that are answered at once.
      allowed: steps that may still be taken; None = any number. A step that is not allowed waits.
      failing: what the next step raises.
      cancelled: requests that were cancelled.
    """

    slots: int = 2
    allowed: threading.Semaphore | None = None
    failing: Exception | None = None
    cancelled: list[int] = dataclasses.field(default_factory=list)
    submitted: int = 0
    rows: dict[tuple[int, int], list[int]] = dataclasses.field(default_factory=dict)
    requests: dict[int, Request] = dataclasses.field(default_factory=dict)
    _ended: list[Event] = dataclasses.field(default_factory=list)

    def check(self, request: Request) -> None:
        if len(request.prompt) + request.sampling.max_new_tokens > CONTEXT:
            raise ValueError(f"{len(request.prompt)} tokens and more exceed max_length={CONTEXT}")

    def submit(self, request: Request) -> int:
        self.submitted += 1
        self.requests[self.submitted] = request
        self.rows |= {(self.submitted, sample): [] for sample in range(request.n)}
        return self.submitted

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)
        for row in [row for row in self.rows if row[0] == request_id]:
            self._ended.append(self._event(row, [], self._completion(self.rows.pop(row), "cancelled")))

    @property
    def busy(self) -> bool:
        return bool(self.rows or self._ended)

    @property
    def active(self) -> int:
        return min(self.slots, len(self.rows))

    @property
    def queued(self) -> int:
        return len(self.rows) - self.active

    def step(self) -> list[Event]:
        if self.allowed is not None and self.rows and not self._ended and not self.allowed.acquire(timeout=0.02):
            return []
        if self.failing is not None:
            raise self.failing
        events, self._ended = self._ended, []
        for row in list(self.rows)[: self.slots]:
            tokens = self.rows[row]
            tokens.append(3 + ord("a") + len(tokens) % 26)
            done = len(tokens) >= self.requests[row[0]].sampling.max_new_tokens
            events.append(self._event(row, tokens[-1:], self._completion(self.rows.pop(row), "length") if done else None))
        return events

    def _event(self, row: tuple[int, int], tokens: list[int], completion: Completion | None) -> Event:
        return Event(*row, list(tokens), np.full(len(tokens), -1.0, np.float32), ByteTokenizer().decode(tokens), None, completion)

    def _completion(self, tokens: list[int], reason: Any) -> Completion:
        return Completion(list(tokens), np.full(len(tokens), -1.0, np.float32), reason, ByteTokenizer().decode(tokens))


@dataclasses.dataclass
class Live:
    """A server that is running."""

    url: str
    service: Service
    server: server.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=20, **options)


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for another thread."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.01)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., None]:
    return eventually


@pytest.fixture
def scripted() -> Callable[..., ScriptedEngine]:
    return ScriptedEngine


def scripted_service(engine: ScriptedEngine, max_queue: int = 2) -> Service:
    return Service(
        name="scripted",
        worker=Worker(engine, slots=engine.slots, max_queue=max_queue),  # type: ignore[arg-type]
        tokenizer=ByteTokenizer(),
        chat=Chat(TEMPLATE),
        max_length=CONTEXT,
        fingerprint="f" * 64,
        check_pairs=lambda pairs: None,
        score=lambda pairs, top: [],
    )


@contextlib.contextmanager
def running(service: Service, access: Access, grace_seconds: float = 0.3) -> Iterator[Live]:
    sock = server.listen("127.0.0.1", 0)
    uvicorn_server = server.Server(build_app(service, access), service.worker, grace_seconds=grace_seconds)
    service.worker.start()
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [sock]})
    thread.start()
    live = Live(server.url(sock), service, uvicorn_server, thread)
    try:
        eventually(lambda: uvicorn_server.started)
        yield live
    finally:
        live.stop()
        service.worker.stop()


@pytest.fixture
def serve_scripted() -> Iterator[Callable[..., Live]]:
    """Starts servers over scripted engines; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(engine: ScriptedEngine, access: Access | None = None, max_queue: int = 2, **options: Any) -> Live:
            return stack.enter_context(running(scripted_service(engine, max_queue), access or Access(), **options))

        yield start


def fitted(seed: int = 0) -> LoadedModel:
    """A model of few parameters and random weights, made without compiling its `init`."""
    config = tiny.llama3(VOCAB, model_dim=32, num_layers=2, q_heads=2, kv_heads=1, head_dim=16, ffn_dim=48, max_length=CONTEXT)
    model = build_model(config)
    generator = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0, 0.5, leaf.shape), leaf.dtype), model.abstract_params())
    return LoadedModel(model, params, ByteTokenizer(), None, Chat(TEMPLATE))


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return Checkpoint("tiny", fitted())


@pytest.fixture(scope="session")
def live(checkpoint: Checkpoint) -> Iterator[Live]:
    """A server over a real engine."""
    service = build_service(checkpoint, Deployment(host="127.0.0.1", name="tiny", slots=4, max_queue=12))
    with running(service, Access()) as found:
        yield found
