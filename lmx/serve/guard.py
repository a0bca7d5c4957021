"""Who may ask: the API key, the Host header, and how many at once. ASGI applications around another."""

import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lmx.serve.answer import json_response
from lmx.serve.error import ApiError, busy


def error_response(error: ApiError) -> ASGIApp:
    """The answer to a request that failed."""
    return json_response(error.body(), status=error.status, headers=error.headers)


class HostGuard:
    """Answers 403 to requests whose Host header names another host, as those of a web page whose domain points here do."""

    def __init__(self, app: ASGIApp, *, hosts: Collection[str]) -> None:
        """Lets through what is addressed to one of `hosts` (names without port)."""
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and host_name(Headers(scope=scope).get("host", "")) not in self._hosts:
            sentence = "the Host header names a host that this server does not answer for; start it with --allow-host NAME"
            await error_response(ApiError(403, sentence, code="host_not_allowed"))(scope, receive, send)
            return
        await self._app(scope, receive, send)


class KeyGuard:
    """Answers 401 to requests below /v1 that do not carry the key as a bearer token."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        """Asks for `key`, which is never shown."""
        self._app, self._expected = app, b"Bearer " + key.encode("utf-8")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "http" and scope["path"] != "/health":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):  # in constant time
                sentence = "this server asks for an API key: send the header Authorization: Bearer KEY with the right one"
                error = ApiError(401, sentence, headers={"WWW-Authenticate": "Bearer"})
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CrowdGuard:
    """Answers 429 to requests with a body when as many as the server has places are being answered, before reading the body."""

    def __init__(self, app: ASGIApp, *, places: int) -> None:
        """Lets through `places` requests at once."""
        self._app, self._places, self._inside = app, places, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._inside >= self._places:
            error = busy(f"the server is answering {self._inside} requests, as many as it takes at once; try again later")
            error.headers["Connection"] = "close"
            await error_response(error)(scope, receive, send)
            return
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1


def host_name(header: str) -> str:
    """The name in a Host header, in lower case, without port and brackets."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


def local_names(host: str) -> set[str] | None:
    """Names by which a server that listens on `host` is addressed; None = any, since it can be reached from elsewhere."""
    if host.lower() != "localhost":
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return None
        if not address.is_loopback:
            return None
    return {"localhost", "127.0.0.1", "::1", host.lower()}
