"""The body of a request: read up to a limit, parsed from JSON, nothing in it trusted."""

import asyncio
import json
from typing import Any

from starlette.requests import Request

from lmx.serve.error import ApiError, bad_request

MAX_BODY_BYTES = 4 * 2**20
MAX_DEPTH = 64  # of nested arrays and objects; the schema of a tool is the deepest thing that clients send
_CLOSE = {"Connection": "close"}  # what has not been read must not be taken for the next request


async def read_json(request: Request, *, limit_bytes: int = MAX_BODY_BYTES, timeout_seconds: float = 30.0) -> dict[str, Any]:
    """The JSON object in a request's body.

    Args:
      request: whose body has not been read.
      limit_bytes: most bytes, counted as they arrive, whatever the headers say.
      timeout_seconds: within which all of it must arrive.

    Raises:
      ApiError: 400 (no JSON object), 408 (too slow), 413 (too large), 415 (not sent as JSON).
      ClientDisconnect: the client went away.
    """
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/json":  # forms of other sites, which browsers send without asking, come as other types
        found = repr(media_type) if media_type else "no type"
        raise ApiError(415, f"send the body as Content-Type: application/json; found {found}", headers=_CLOSE)
    too_large = ApiError(413, f"the body is larger than {limit_bytes} bytes, the most this server reads", headers=_CLOSE)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit_bytes:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {timeout_seconds:g} s", headers=_CLOSE) from None
    return parse(bytes(data))


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth, without NaN or infinite numbers.

    Raises:
      ApiError: 400.
    """
    too_deep = bad_request(f"the body's JSON is nested more than {MAX_DEPTH} deep")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise bad_request(f"the body must be a JSON object, found {kind_name(value)}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:
        raise too_deep
    return value


def kind_name(value: Any) -> str:
    """What JSON calls a value, with its article."""
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
