"""What goes over the wire and what comes back, without the wire: both clients share it.

An `Order` is a request and how its answer is read. `judge` says what to do with a response.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

import httpx
import numpy as np

from .errors import ApiError, UnexpectedAnswer

T = TypeVar("T")

TEMPORARY = (429, 503)
"""Statuses that pass: too much is waiting, or it loads."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds between tries where the server does not say how many."""


class File(NamedTuple):
    """A file of a request."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Order(Generic[T]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    fields: Mapping[str, Any] | None = None
    """The body, without its files; none where there is no body. What is None is not sent."""
    files: Mapping[str, File | None] = field(default_factory=dict)
    """Files of the body."""
    is_form: bool = False
    """Whether files travel as they are, in a form, instead of as base64 in JSON."""
    accept: str = "application/json"
    kind: str | None = None
    """What a job of this request is called."""
    request_id: str | None = None

    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        fields = self._given()
        for name, file in self.files.items():
            if file is not None:
                fields[name] = base64.b64encode(file.data).decode()
        return fields

    def _given(self) -> dict[str, Any]:
        """The fields that are sent; NumPy's numbers are plain ones there."""
        given = {name: value for name, value in (self.fields or {}).items() if value is not None}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of this client."""
        headers = {"accept": self.accept}
        if self.request_id is not None:
            headers["x-request-id"] = self.request_id
        if self.fields is None:
            return http.build_request(self.method, self.path, headers=headers)
        files = {name: file for name, file in self.files.items() if file is not None}
        if not (self.is_form and files):
            return http.build_request(self.method, self.path, headers=headers, json=self.json())
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self._given().items()}
        return http.build_request(self.method, self.path, headers=headers, data=texts, files=files)


def part(name: str) -> str:
    """A name as a part of a path."""
    return quote(name, safe="")


def judge(response: httpx.Response, attempt: int, retries: int) -> float | None:
    """None of an answer, else the seconds after which to ask again; raises what is not worth that."""
    if response.is_success:
        return None
    error = error_of(response)
    if response.status_code not in TEMPORARY or error.is_final or attempt >= retries:
        raise error
    return pause(attempt) if error.retry_after is None else error.retry_after


def again(order: Order[T], refusal: httpx.Response) -> Order[T]:
    """The same under the id of its refusal: by it the server knows whom it has kept a place for."""
    return replace(order, request_id=order.request_id or refusal.headers.get("x-request-id"))


def pause(attempt: int) -> float:
    """Seconds to wait after so many tries."""
    return min(FIRST_PAUSE * 2.0 ** min(attempt, 10), LONGEST_PAUSE)


def error_of(response: httpx.Response) -> ApiError:
    """The error that a response tells; its body must have been read."""
    try:
        error = response.json()["error"]
        if not isinstance(error, Mapping):
            raise TypeError
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        # Not ours: a proxy's page, or a path that some other program answers.
        error = {"message": f"{response.request.method} {response.request.url} was answered {response.status_code}"}
        error["request_id"] = response.headers.get("x-request-id")
    return ApiError.of(
        error, status=response.status_code, retry_after=seconds(response.headers.get("retry-after")),
        is_final=response.headers.get("x-should-retry") == "false",
    )


def seconds(retry_after: str | None) -> float | None:
    """What `retry-after` says: a number of seconds, or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except ValueError:
        return None


def body(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer."""
    try:
        found = response.json()
    except (ValueError, UnicodeDecodeError):
        found = None
    if not isinstance(found, dict):
        kind = response.headers.get("content-type", "no type")
        raise UnexpectedAnswer(f"{response.request.url} answered {kind}, expected a JSON object")
    return found


def reading(response: httpx.Response, read: Callable[[httpx.Response], T]) -> T:
    """What an answer says; where it does not say it, that is told in words."""
    try:
        return read(response)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"{response.request.url} answered what does not read: {type(error).__name__}: {error}"
        raise UnexpectedAnswer(message) from error
