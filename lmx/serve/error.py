"""Errors as OpenAI's clients expect them: a status, a sentence, a type, and where it applies a code and a parameter."""

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 429: "server_busy", 503: "unavailable"}
RETRY_SECONDS = 1


class ApiError(Exception):
    """A request that gets an error for an answer.

    Attributes:
      status: of HTTP.
      param: field of the request's body that is at fault, None where none is.
      code: short name of the failure for programs.
      headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """An error of this status, whose message is `sentence`."""
        super().__init__(sentence)
        self.status, self.param, self.code = status, param, code or _CODES.get(status)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad_request(sentence: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The caller's mistake, 400."""
    return ApiError(400, sentence, param=param, code=code)


def busy(sentence: str) -> ApiError:
    """Too much at once, 429; the same request may do later."""
    return ApiError(429, sentence, headers={"Retry-After": str(RETRY_SECONDS)})
