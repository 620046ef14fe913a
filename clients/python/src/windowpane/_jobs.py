"""Jobs, without the wire: what the server says of one, its events, and a download that goes on where it broke.

`Events` and `Download` are read by both clients in one way: ask for `request()`, tell `begin` the head of the answer,
`feed` what comes, and say how it ended. Each of the latter answers with the seconds to wait before the next try.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, TypeVar

import httpx

from ._wire import Order, body, judge, part, pause
from .errors import JobFailed, UnexpectedAnswer

OVER = ("succeeded", "failed", "cancelled")

STATES = {name: name for name in ("queued", "running", *OVER)} | {"progress": "running", "released": "queued"}
"""The state of a job after an event of this name; one that was released waits for another server."""

RESUMES = 5
"""Tries in a row that may bring nothing, before a stream is given up."""

E = TypeVar("E", covariant=True)


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    done: int
    total: int


@dataclass(frozen=True)
class JobStatus:
    """What the server says of a job."""

    id: str
    kind: str
    state: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    progress: Progress
    eta: float | None
    """Seconds that what is left takes, as it went when the server was last asked."""
    position: int | None
    """Jobs that were ordered before it and wait as well, likewise."""
    error: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in OVER

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> JobStatus:
        """From the server's job object."""
        done = told["progress"]
        return cls(
            id=told["id"], kind=told["kind"], state=told["state"],
            progress=Progress(done["done"], done["total"]), eta=told["eta"], position=told["position"],
            error=told["error"], raw=told,
        )

    def check(self) -> None:
        """Raises what became of a job that has no result."""
        if self.state in ("failed", "cancelled"):
            error = self.error or {"message": f"the job {self.id} was {self.state}", "code": self.state}
            raise JobFailed.of(error)


@dataclass(frozen=True)
class Event:
    """Something that happened to a job."""

    id: str | None
    name: str
    """What happened: `progress` or `released`, or the state that the job is in now."""
    data: Mapping[str, Any]

    @property
    def state(self) -> str | None:
        """The state that the job is in now; none of an event that is not known here."""
        return STATES.get(self.name)


def of_response(response: httpx.Response) -> JobStatus:
    """The job object of an answer."""
    return JobStatus.of(body(response))


def create(order: Order[Any], id: str | None) -> Order[JobStatus]:
    """A job of this order; with an id of the caller's, the same one however often it is asked for."""
    if order.kind is None:
        raise ValueError(f"there are no jobs of {order.path}")
    fields = {"kind": order.kind, "request": order.json()}
    if id is None:
        return Order("POST", "v1/jobs", of_response, fields=fields, request_id=order.request_id)
    return Order("PUT", path(id), of_response, fields=fields, request_id=order.request_id)


def status(id: str) -> Order[JobStatus]:
    """How a job stands."""
    return Order("GET", path(id), of_response)


def give_up(id: str) -> Order[JobStatus]:
    """Cancels a job."""
    return Order("DELETE", path(id), of_response)


def path(id: str) -> str:
    """Where a job is."""
    return f"v1/jobs/{part(id)}"


def id_in(response: httpx.Response) -> str:
    """The id of the job that an answer of 202 speaks of."""
    location = response.headers.get("location", "")
    _, found, rest = location.partition("/v1/jobs/")
    if found and rest:
        return httpx.URL(location).path.rpartition("/v1/jobs/")[2]
    return str(body(response)["id"])


def after(status: JobStatus, event: Event) -> JobStatus:
    """How a job stands after an event, which tells how far it is and why it ended; how long the rest takes it does not."""
    told = {name: event.data.get(name, status.raw[name]) for name in ("progress", "error")}
    state = event.state or status.state
    # Why a server left it is not why it came to nothing.
    told["error"] = told["error"] if state in OVER else None
    return JobStatus.of({**status.raw, **told, "state": state, "position": None, "eta": None})


class Reader(Protocol[E]):
    """What is read off a stream that may break."""

    @property
    def is_done(self) -> bool:
        """Whether all is read."""
        ...

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request for what is not read yet."""
        ...

    def begin(self, response: httpx.Response) -> float | None:
        """None where the body is to be read; its body has been read where it is no success."""
        ...

    def feed(self, data: bytes) -> Iterator[E]:
        """What more data brings."""
        ...

    def ended(self) -> float:
        """The body came to its end."""
        ...

    def broke(self, error: httpx.TransportError) -> float:
        """The connection broke, or did not come about."""
        ...


class Resuming:
    """Counts the tries that brought nothing, and what a stream that breaks costs in time."""

    def __init__(self, retries: int) -> None:
        self._retries = max(retries, RESUMES)
        self._fruitless = 0

    def begin(self, response: httpx.Response) -> float | None:
        """Judges the head of an answer."""
        wait = judge(response, self._fruitless, self._retries)
        if wait is not None:
            self._fruitless += 1
        return wait

    def broke(self, error: httpx.TransportError) -> float:
        """Raises the error where it is the last of too many."""
        self._fruitless += 1
        if self._fruitless > self._retries:
            raise error
        return pause(self._fruitless - 1)


class Events(Resuming):
    """The events of a job (server-sent events), each once: after a break, those after the last one."""

    def __init__(self, id: str, retries: int = 0) -> None:
        super().__init__(retries)
        self.id = id
        self.last: str | None = None
        self.is_done = False
        self._pending = b""
        self._lines: list[str] = []

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The events that have not been read."""
        headers = {"accept": "text/event-stream", "accept-encoding": "identity"}
        if self.last is not None:
            headers["last-event-id"] = self.last
        self._pending, self._lines = b"", []
        return http.build_request("GET", f"{path(self.id)}/events", headers=headers)

    def begin(self, response: httpx.Response) -> float | None:
        """Judges the head of an answer; 204 says that there are no more events."""
        self.is_done = response.status_code == 204
        return super().begin(response)

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are whole now."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", "replace")
            if text:
                self._lines.append(text)
                continue
            # A comment alone says that the server is there, and has nothing new.
            self._fruitless = 0
            event, self._lines = self._event(self._lines), []
            if event is not None:
                self.is_done = event.state in OVER
                yield event
                if self.is_done:
                    return

    def _event(self, lines: list[str]) -> Event | None:
        """The event of these lines; none of comments alone."""
        name, data = "message", []
        for line in lines:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if key == "id":
                self.last = value
            elif key == "event":
                name = value
            elif key == "data":
                data.append(value)
        if not data:
            return None
        text = "\n".join(data)
        try:
            told = json.loads(text)
        except ValueError as error:
            raise UnexpectedAnswer(f"the event `{name}` of job {self.id} is not JSON: {text[:200]}") from error
        if not isinstance(told, dict):
            raise UnexpectedAnswer(f"the event `{name}` of job {self.id} is no object: {text[:200]}")
        return Event(self.last, name, told)

    def ended(self) -> float:
        """An end before the job's: as if the connection had broken."""
        return self.broke(httpx.RemoteProtocolError(f"the events of job {self.id} ended before the job did"))


class Download(Resuming):
    """The result of a job into a file: after a break, from where it broke."""

    def __init__(self, id: str, out: BinaryIO, retries: int = 0) -> None:
        super().__init__(retries)
        self.id = id
        self.out = out
        self.total: int | None = None
        self.headers = httpx.Headers()
        self.is_done = False
        self._tag: str | None = None

    @property
    def read(self) -> int:
        """Bytes that are there."""
        return self.out.tell()

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The bytes that are not there."""
        headers = {"accept": "*/*", "accept-encoding": "identity"}
        if self.read > 0:
            headers["range"] = f"bytes={self.read}-"
            if self._tag is not None:
                headers["if-range"] = self._tag
        return http.build_request("GET", f"{path(self.id)}/result", headers=headers)

    def begin(self, response: httpx.Response) -> float | None:
        """Takes the rest, or all of it from the beginning; 416 where there is no rest."""
        if response.status_code == 416 and self.read == self.total:
            self.is_done = True
            return None
        wait = super().begin(response)
        if wait is not None:
            return wait
        if response.status_code == 206:
            first, self.total = _range(response)
            if first != self.read:
                raise UnexpectedAnswer(f"the result of job {self.id} goes on at byte {first}, expected {self.read}")
        else:
            self.out.seek(0)
            self.out.truncate()
            length = response.headers.get("content-length")
            self.total = None if length is None else int(length)
            self.headers = response.headers
            tag = response.headers.get("etag", "")
            self._tag = tag if tag.startswith('"') else None
        return None

    def feed(self, data: bytes) -> Iterator[int]:
        """How many bytes are there now."""
        if data:
            self.out.write(data)
            self._fruitless = 0
            yield self.read

    def ended(self) -> float:
        """All is there, or the connection broke in silence."""
        self.is_done = self.total is None or self.read >= self.total
        if self.is_done:
            return 0.0
        return self.broke(httpx.RemoteProtocolError(f"the result of job {self.id} ended at byte {self.read}"))

    def response(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Response:
        """The whole result, as if it had come in one answer."""
        self.out.seek(0)
        request = http.build_request("GET", f"{path(self.id)}/result")
        headers = {"content-type": self.headers.get("content-type", "application/octet-stream")}
        return httpx.Response(200, headers=headers, content=self.out.read(), request=request)


def _range(response: httpx.Response) -> tuple[int, int | None]:
    """First byte and size, of `content-range: bytes 5-9/10`."""
    text = response.headers.get("content-range", "")
    try:
        unit, _, rest = text.partition(" ")
        span, _, size = rest.partition("/")
        if unit != "bytes":
            raise ValueError
        return int(span.partition("-")[0]), None if size == "*" else int(size)
    except ValueError:
        raise UnexpectedAnswer(f"`content-range` is `{text}`, expected `bytes FIRST-LAST/SIZE`") from None
