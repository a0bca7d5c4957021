"""Answers: JSON, and server-sent events."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """JSON in UTF-8; a lone surrogate, which a model of bytes can write and UTF-8 can't hold, becomes its escape."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response with a JSON body."""
    return Response(to_json(value), status_code=status, headers=headers, media_type="application/json")


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"
