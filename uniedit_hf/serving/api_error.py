"""Errors with an HTTP status and the body that OpenAI's clients read."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse


KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ApiError(HTTPException):
    """A request that is refused or failed.

    Args:
        status: The HTTP status.
        message: Found and expected value, and the remedy.
        code: A word for programs, such as `"model_not_found"`.
        param: The field of the request that is wrong.
        headers: Additional headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    @property
    def body(self) -> dict:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = KINDS.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status_code, self.headers)


def closing() -> ApiError:
    """The error for requests that arrive or wait while the server shuts down."""
    return ApiError(503, "The server is shutting down: send the request again.", code="shutting_down")


def timed_out(seconds: float) -> ApiError:
    """The error for a request that took too long."""
    return ApiError(
        504,
        f"The request took longer than {seconds:g} seconds, including waiting, and was stopped: ask for fewer "
        "timesteps or tokens, or try again when the server is less busy.",
        code="timeout",
    )
