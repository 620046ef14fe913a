"""What goes wrong, told apart: what the server refuses, a job that failed, an answer that is not a Windowpane's.

A connection that does not come about, or breaks, is httpx's `TransportError`, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WindowpaneError(Exception):
    """Whatever this package raises of its own."""


class UnexpectedAnswer(WindowpaneError):
    """An answer that no Windowpane gives: of another program, or of something on the way."""


class ApiError(WindowpaneError):
    """What the server says when it does not do as it was asked: its error object, and how it came."""

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        """A sentence for people."""
        self.type = type
        """The family, `invalid_request_error` for example."""
        self.param = param
        """The field that is wrong, where one is."""
        self.code = code
        """A stable word for programs, `invalid_value` for example."""
        self.status = status
        """The HTTP status; none of a job that failed."""
        self.request_id = request_id
        """The id by which the server's log knows the request."""
        self.retry_after = retry_after
        """Seconds after which there will be room."""
        self.is_final = is_final
        """Whether the server says that asking again is of no use."""

    def __str__(self) -> str:
        notes = [str(note) for note in (self.status, self.code, self.request_id) if note is not None]
        return f"{self.message} ({', '.join(notes)})" if notes else self.message

    @classmethod
    def of(
        cls, error: Mapping[str, Any], *, status: int | None = None, retry_after: float | None = None,
        is_final: bool = False,
    ) -> ApiError:
        """From an error object as the server writes it."""
        return cls(
            str(error.get("message", "the server gave no reason")), type=error.get("type"), param=error.get("param"),
            code=error.get("code"), status=status, request_id=error.get("request_id"), retry_after=retry_after,
            is_final=is_final,
        )


class JobFailed(ApiError):
    """A job that ended without a result: it failed, or it was cancelled (`code` says which)."""
