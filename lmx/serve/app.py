"""The OpenAI-compatible application: its routes, and what stands in front of them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lmx.core.logging import logger
from lmx.serve import body, completion, dialogue
from lmx.serve.answer import json_response
from lmx.serve.error import ApiError
from lmx.serve.feed import Attended
from lmx.serve.guard import CrowdGuard, HostGuard, KeyGuard, error_response
from lmx.serve.service import Service
from lmx.serve.worker import EngineFailedError

Prepare = Callable[[Service, dict[str, Any]], Attended]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask, and how much.

    Attributes:
      api_key: to be sent as a bearer token; None = none is asked for.
      hosts: names that a Host header may have; None = any.
      max_body_bytes: largest body of a request.
      body_seconds: within which a body must have arrived.
    """

    api_key: str | None = dataclasses.field(default=None, repr=False)
    hosts: frozenset[str] | None = None
    max_body_bytes: int = body.MAX_BODY_BYTES
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.api_key is not None and (not self.api_key or self.api_key != self.api_key.strip()):
            raise ValueError("the API key is empty or has white space around it; write it as one line of visible characters")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes={self.max_body_bytes} must be at least 1")


def build_app(service: Service, access: Access = Access()) -> ASGIApp:
    """The application.

    Args:
      service: the model; its worker has been started.
      access: who may ask.
    """
    routes = [
        Route("/health", functools.partial(_health, service)),
        Route("/v1/models", functools.partial(_models, service)),
        Route("/v1/models/{name:path}", functools.partial(_model, service)),
        Route("/v1/completions", _endpoint(service, access, completion.prepare), methods=["POST"]),
        Route("/v1/chat/completions", _endpoint(service, access, dialogue.prepare), methods=["POST"]),
    ]
    handlers: Any = {ApiError: _api_error, HTTPException: _http_error, Exception: _bug}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = CrowdGuard(app, places=service.worker.places)
    if access.api_key is not None:
        app = KeyGuard(app, key=access.api_key)
    return app if access.hosts is None else HostGuard(app, hosts=access.hosts)


def _endpoint(service: Service, access: Access, prepare: Prepare) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Any:
        refusal = service.worker.refusal
        if refusal is not None:
            raise ApiError(500 if isinstance(refusal, EngineFailedError) else 503, str(refusal))
        try:
            values = await body.read_json(request, limit_bytes=access.max_body_bytes, timeout_seconds=access.body_seconds)
        except ClientDisconnect:
            return Response(status_code=400)  # which nobody will read
        return await run_in_threadpool(prepare, service, values)  # a long text takes its time to encode

    return endpoint


async def _health(service: Service, request: Request) -> Response:
    refusal = service.worker.refusal
    state: dict[str, Any] = {"status": "ok", "taken": service.worker.taken, "places": service.worker.places}
    if refusal is not None:
        state |= {"status": "failed" if isinstance(refusal, EngineFailedError) else "stopping", "reason": str(refusal)}
    return json_response(state, status=200 if refusal is None else 503)


async def _models(service: Service, request: Request) -> Response:
    return json_response({"object": "list", "data": [service.description()]})


async def _model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    if name != service.name:
        raise ApiError(404, f"the model {name[:200]!r} does not exist here", param="model", code="model_not_found")
    return json_response(service.description())


async def _api_error(request: Request, error: ApiError) -> Any:
    return error_response(error)


async def _http_error(request: Request, error: HTTPException) -> Any:
    sentences = {404: f"there is nothing at {request.url.path[:200]!r}", 405: f"{request.method} is not allowed here"}
    sentence = sentences.get(error.status_code, error.detail)
    return error_response(ApiError(error.status_code, sentence, headers=error.headers))


async def _bug(request: Request, error: Exception) -> Any:
    logger.error("the request failed by a bug of the server: %s", type(error).__name__)
    return error_response(ApiError(500, "the server failed at this request; its log says more"))
