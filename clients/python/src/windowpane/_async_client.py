"""The same client, to be awaited: only how it waits is its own."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Coroutine
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


def _call(order: Callable[P, Order[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The method that carries out such an order."""
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._perform(order(*args, **kwargs))

    return _orders.named(method, order)


class AsyncClient:
    """Asks a Windowpane server, as `Client` does. To be closed, or used in an `async with`."""

    def __init__(
        self,
        base_url: str = "http://localhost:8080",
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = 600.0,
        *,
        retries: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._http = httpx.AsyncClient(**_orders.settings(base_url, api_key, timeout), transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

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
    async def submit(
        self, kind: Literal["attention"], *, id: str | None = None, **request: Any
    ) -> AsyncJob[Attention]: ...
    @overload
    async def submit(
        self, kind: Literal["jacobian"], *, id: str | None = None, **request: Any
    ) -> AsyncJob[Jacobian]: ...
    @overload
    async def submit(
        self, kind: Literal["psnr-gap"], *, id: str | None = None, **request: Any
    ) -> AsyncJob[PsnrGap]: ...
    @overload
    async def submit(
        self, kind: Literal["images"], *, id: str | None = None, **request: Any
    ) -> AsyncJob[Images]: ...

    async def submit(self, kind: str, *, id: str | None = None, **request: Any) -> AsyncJob[Any]:
        """Begins a job, as `Client.submit` does."""
        order = _orders.of_kind(kind, request)
        return AsyncJob(self, await self._perform(_jobs.create(order, id)), order.read)

    async def job(self, id: str) -> AsyncJob[Any]:
        """A job that is there already."""
        status = await self._perform(_jobs.status(id))
        return AsyncJob(self, status, _orders.of_kind(status.kind, {}).read)

    async def _perform(self, order: Order[T]) -> T:
        """Sends a request and reads its answer; what the server made a job of is waited for."""
        response = await self._send(order)
        if response.status_code == 202 and order.kind is not None:
            status = await self._perform(_jobs.status(_jobs.id_in(response)))
            return await AsyncJob(self, status, order.read).result()
        return reading(response, order.read)

    async def _send(self, order: Order[Any]) -> httpx.Response:
        for attempt in count():
            response = await self._http.send(order.build(self._http))
            wait = judge(response, attempt, self._retries)
            if wait is None:
                return response
            order = again(order, response)
            await asyncio.sleep(wait)
        raise AssertionError("there is always another number")

    async def _follow(self, reader: _jobs.Reader[E]) -> AsyncIterator[E]:
        """Reads a stream to its end, over as many connections as it takes."""
        while not reader.is_done:
            try:
                response = await self._http.send(reader.request(self._http), stream=True)
                try:
                    if not response.is_success:
                        await response.aread()
                    wait = reader.begin(response)
                    if wait is None and not reader.is_done:
                        async for data in response.aiter_raw():
                            for found in reader.feed(data):
                                yield found
                        wait = reader.ended()
                finally:
                    await response.aclose()
            except httpx.TransportError as error:
                wait = reader.broke(error)
            if not reader.is_done:
                await asyncio.sleep(wait or 0.0)


class AsyncJob(Generic[T]):
    """A request that outlives its call, as `Job` is."""

    def __init__(self, client: AsyncClient, status: JobStatus, read: Callable[[httpx.Response], T]) -> None:
        self._client = client
        self._read = read
        self.status = status
        """How it stood when the server was last asked."""

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id} {self.status.kind} {self.status.state}>"

    @property
    def id(self) -> str:
        """Its id, for `AsyncClient.job`."""
        return self.status.id

    async def refresh(self) -> JobStatus:
        """Asks how it stands."""
        self.status = await self._client._perform(_jobs.status(self.id))
        return self.status

    def events(self) -> AsyncIterator[Event]:
        """What happens to it, from its beginning to its end; a connection that breaks costs nothing."""
        return self._client._follow(_jobs.Events(self.id, self._client._retries))

    async def wait(self, progress: Callable[[JobStatus], object] | None = None) -> AsyncJob[T]:
        """Waits until it is done, and tells `progress` how it stands each time there is news.

        Raises `JobFailed` where there will be no result.
        """
        if not self.status.is_over:
            async for event in self.events():
                self.status = _jobs.after(self.status, event)
                if progress is not None:
                    progress(self.status)
            await self.refresh()
        self.status.check()
        return self

    async def result(self) -> T:
        """What came of it, once it is done; a download that breaks goes on where it broke."""
        await self.wait()
        download = _jobs.Download(self.id, io.BytesIO(), self._client._retries)
        async for _ in self._client._follow(download):
            pass
        return reading(download.response(self._client._http), self._read)

    async def download(
        self, path: str | os.PathLike[str], progress: Callable[[int, int | None], object] | None = None
    ) -> Path:
        """Writes the result to a file as it is, and tells `progress` the bytes that are there, and how many there are.

        The file is whole or absent: until then it is `PATH.part`.
        """
        await self.wait()
        whole = Path(path)
        part = whole.with_name(f"{whole.name}.part")
        with part.open("w+b") as out:
            download = _jobs.Download(self.id, out, self._client._retries)
            async for read in self._client._follow(download):
                if progress is not None:
                    progress(read, download.total)
        part.replace(whole)
        return whole

    async def cancel(self) -> JobStatus:
        """Gives it up."""
        self.status = await self._client._perform(_jobs.give_up(self.id))
        return self.status
