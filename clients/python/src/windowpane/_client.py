"""The client, and jobs as it sees them."""

from __future__ import annotations

import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

import httpx

from . import _jobs, _looking, _orders, pictures
from . import models as _models
from ._jobs import Event, JobStatus
from ._wire import Order, again, judge, reading
from .looks import Attention, Jacobian, PsnrGap
from .pictures import Images

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E")


def _call(order: Callable[P, Order[T]]) -> Callable[Concatenate[Client, P], T]:
    """The method that carries out such an order."""
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._perform(order(*args, **kwargs))

    return _orders.named(method, order)


class Client:
    """Asks a Windowpane server. To be closed, or used in a `with`.

    `timeout` is in seconds, for every wait for more of an answer. `retries` is how often a request is
    sent again that was told 429 or 503, each time after as long as the server says. `transport` is httpx's.
    """

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = 600.0,
        *,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.Client(**_orders.settings(base_url, api_key, timeout), transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    models = _call(_models.models)
    model = _call(_models.model)
    generate = _call(pictures.generate)
    replay = _call(pictures.replay)
    cancel = _call(pictures.cancel)
    attention = _call(_looking.attention)
    draw_attention = _call(_looking.draw_attention)
    jacobian = _call(_looking.jacobian)
    draw_jacobian = _call(_looking.draw_jacobian)
    psnr_gap = _call(_looking.psnr_gap)
    draw_psnr_gap = _call(_looking.draw_psnr_gap)

    @overload
    def submit(self, kind: Literal["attention"], *, id: str | None = None, **request: Any) -> Job[Attention]: ...
    @overload
    def submit(self, kind: Literal["jacobian"], *, id: str | None = None, **request: Any) -> Job[Jacobian]: ...
    @overload
    def submit(self, kind: Literal["psnr-gap"], *, id: str | None = None, **request: Any) -> Job[PsnrGap]: ...
    @overload
    def submit(self, kind: Literal["images"], *, id: str | None = None, **request: Any) -> Job[Images]: ...

    def submit(self, kind: str, *, id: str | None = None, **request: Any) -> Job[Any]:
        """Begins a job: `request` is what the method of that name takes.

        `images` are as many as a statistic takes: `n` (to 100,000), and what `generate` takes to say how; `classes="each"`
        has image i be of class i modulo their number. `output="zip"` makes an archive of PNGs of them, for `Job.download`.

        With an `id` of your own it is one job, however often it is submitted.
        """
        order = _orders.of_kind(kind, request)
        return Job(self, self._perform(_jobs.create(order, id)), order.read)

    def job(self, id: str) -> Job[Any]:
        """A job that is there already."""
        status = self._perform(_jobs.status(id))
        return Job(self, status, _orders.of_kind(status.kind, {}).read)

    def _perform(self, order: Order[T]) -> T:
        """Sends a request and reads its answer; what the server made a job of is waited for."""
        response = self._send(order)
        if response.status_code == 202 and order.kind is not None:
            status = self._perform(_jobs.status(_jobs.id_in(response)))
            return Job(self, status, order.read).result()
        return reading(response, order.read)

    def _send(self, order: Order[Any]) -> httpx.Response:
        for attempt in count():
            response = self._http.send(order.build(self._http))
            wait = judge(response, attempt, self._retries)
            if wait is None:
                return response
            order = again(order, response)
            time.sleep(wait)
        raise AssertionError("there is always another number")

    def _follow(self, reader: _jobs.Reader[E]) -> Iterator[E]:
        """Reads a stream to its end, over as many connections as it takes."""
        while not reader.is_done:
            try:
                response = self._http.send(reader.request(self._http), stream=True)
                try:
                    if not response.is_success:
                        response.read()
                    wait = reader.begin(response)
                    if wait is None and not reader.is_done:
                        for data in response.iter_raw():
                            yield from reader.feed(data)
                        wait = reader.ended()
                finally:
                    response.close()
            except httpx.TransportError as error:
                wait = reader.broke(error)
            if not reader.is_done:
                time.sleep(wait or 0.0)


class Job(Generic[T]):
    """A request that outlives its call."""

    def __init__(self, client: Client, status: JobStatus, read: Callable[[httpx.Response], T]) -> None:
        self._client = client
        self._read = read
        self.status = status
        """How it stood when the server was last asked."""

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status.kind} {self.status.state}>"

    @property
    def id(self) -> str:
        """Its id, for `Client.job`."""
        return self.status.id

    def refresh(self) -> JobStatus:
        """Asks how it stands."""
        self.status = self._client._perform(_jobs.status(self.id))
        return self.status

    def events(self) -> Iterator[Event]:
        """What happens to it, from its beginning to its end; a connection that breaks costs nothing."""
        return self._client._follow(_jobs.Events(self.id, self._client._retries))

    def wait(self, progress: Callable[[JobStatus], object] | None = None) -> Job[T]:
        """Waits until it is done, and tells `progress` how it stands each time there is news.

        Raises `JobFailed` where there will be no result.
        """
        if not self.status.is_over:
            for event in self.events():
                self.status = _jobs.after(self.status, event)
                if progress is not None:
                    progress(self.status)
            self.refresh()
        self.status.check()
        return self

    def result(self) -> T:
        """What came of it, once it is done; a download that breaks goes on where it broke."""
        self.wait()
        download = _jobs.Download(self.id, io.BytesIO(), self._client._retries)
        deque(self._client._follow(download), maxlen=0)
        return reading(download.response(self._client._http), self._read)

    def download(
        self, path: str | os.PathLike[str], progress: Callable[[int, int | None], object] | None = None
    ) -> Path:
        """Writes the result to a file as it is, and tells `progress` the bytes that are there, and how many there are.

        The file is whole or absent: until then it is `PATH.part`.
        """
        self.wait()
        whole = Path(path)
        part = whole.with_name(f"{whole.name}.part")
        with part.open("w+b") as out:
            download = _jobs.Download(self.id, out, self._client._retries)
            for read in self._client._follow(download):
                if progress is not None:
                    progress(read, download.total)
        part.replace(whole)
        return whole

    def cancel(self) -> JobStatus:
        """Gives it up."""
        self.status = self._client._perform(_jobs.give_up(self.id))
        return self.status
