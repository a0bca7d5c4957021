"""Putting a checkpoint on duty: engine, worker, application and server from one description."""

import dataclasses
import functools
import queue
import socket

from lmx.core.logging import logger
from lmx.sampling import score
from lmx.sampling.request import Event, Request, Sampling
from lmx.serve import server
from lmx.serve.app import Access, build_app
from lmx.serve.body import MAX_BODY_BYTES
from lmx.serve.checkpoint import Checkpoint
from lmx.serve.guard import local_names
from lmx.serve.service import Service
from lmx.serve.worker import Worker

_DECODE_STEPS = 4  # tokens of an answer that a stream sends at once, and most that a new request waits for
_SCORED_ROWS = 8  # of echoed prompts at once: short calls, since other requests wait for them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """How a model is served.

    Attributes:
      host: address that is listened on.
      name: id of the model.
      api_key: asked for; None = none.
      allow_hosts: names of this server beyond the local ones.
      slots: rows decoded together.
      max_queue: answers that may wait for a slot.
      max_length: tokens of a prompt and its answer; None = the model's, to a bound.
      kv_dtype: of the cache.
      max_body_bytes: largest request.
    """

    host: str
    name: str
    api_key: str | None = dataclasses.field(default=None, repr=False)
    allow_hosts: tuple[str, ...] = ()
    slots: int = 8
    max_queue: int = 256
    max_length: int | None = None
    kv_dtype: str | None = None
    max_body_bytes: int = MAX_BODY_BYTES

    def access(self) -> Access:
        """Who may ask. A server that only this machine reaches answers to local names alone, and to those that are allowed."""
        local = local_names(self.host)
        hosts = None if local is None and not self.allow_hosts else frozenset((local or {self.host}) | set(self.allow_hosts))
        return Access(api_key=self.api_key, hosts=hosts, max_body_bytes=self.max_body_bytes)


def build_service(checkpoint: Checkpoint, deployment: Deployment) -> Service:
    """The model with its engine and worker, which has not been started."""
    loaded = checkpoint.loaded
    limit = checkpoint.context(deployment.max_length)
    engine = checkpoint.engine(slots=deployment.slots, max_length=limit, kv_dtype=deployment.kv_dtype, decode_steps=_DECODE_STEPS)
    scorer = functools.partial(
        score.score_continuations,
        loaded.model,
        loaded.params,
        pad_id=loaded.tokenizer.pad_id,
        batch_size=_SCORED_ROWS,
        vocab_size=min(loaded.tokenizer.vocab_size, loaded.model.config.vocab_size),
    )
    return Service(
        name=deployment.name,
        worker=Worker(engine, slots=deployment.slots, max_queue=deployment.max_queue),
        tokenizer=loaded.tokenizer,
        chat=loaded.chat,
        max_length=limit,
        fingerprint=checkpoint.fingerprint,
        check_pairs=functools.partial(score.check_pairs, loaded.model),
        score=lambda pairs, top: scorer(pairs, top=top),
    )


def serve(checkpoint: Checkpoint, sock: socket.socket, deployment: Deployment) -> None:
    """Serves until SIGINT or SIGTERM.

    Raises:
      EngineFailedError: the engine can't even answer a request of one token, for instance for lack of memory.
    """
    access = deployment.access()
    service = build_service(checkpoint, deployment)
    app = build_app(service, access)
    if deployment.api_key is None and local_names(deployment.host) is None:
        logger.warning("no API key is asked for: whoever reaches %s can use the model (see --api-key-file)", server.url(sock))
    service.worker.start()
    try:
        warm_up(service)
        where = f"{server.url(sock)}/v1"
        logger.info(
            "serving %s at %s (%d slots, context %d); Ctrl-C ends", service.name, where, deployment.slots, service.max_length
        )
        server.run(app, service.worker, sock)
    finally:
        service.worker.stop()
    logger.info("the server has ended")


def warm_up(service: Service) -> None:
    """Completes one short request, so that what every request needs is compiled before the first one comes.

    Raises:
      EngineFailedError: it failed.
    """
    news: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
    sampling = Sampling(max_new_tokens=min(2 * _DECODE_STEPS, service.max_length - 1), temperature=0.0)
    request = Request(prompt=[service.tokenizer.eos_id], sampling=sampling)
    service.worker.submit([request], lambda place, item: news.put(item))
    while True:
        item = news.get()
        if isinstance(item, Exception):
            raise item
        if item.completion is not None:
            return
