"""The client that is awaited: the same requests, the same answers, the same patience."""

import asyncio
import inspect

import httpx
import pytest
from mock import Server, events, recorded
from test_errors import refusal
from test_jobs import RESULT, begun, streamed, told

from windowpane import ApiError, AsyncClient, AsyncJob, Client, Job, JobFailed


def test_both_clients_have_the_same_methods():
    def shape(kind):
        members = {name: member for name, member in vars(kind).items() if name[0] != "_" and callable(member)}
        return {name: list(inspect.signature(member).parameters) for name, member in members.items()}

    assert shape(AsyncClient) == shape(Client) and shape(AsyncJob) == shape(Job)
    assert inspect.signature(Client.generate).return_annotation == "list[Image]"
    assert Client.generate.__doc__.startswith("Draws images")


def test_it_asks_and_asks_again(pauses):
    server = Server(refusal(429, retry_after="2"), recorded("image"), recorded("steps_out_of_range"))

    async def main():
        async with server.async_client(retries=1) as client:
            (image,) = await client.generate("tiny", prompt="ring")
            with pytest.raises(ApiError, match="`steps` is"):
                await client.generate("tiny", steps=0)
            return image

    assert asyncio.run(main()).format == "png" and pauses == [2.0]


def test_jobs_are_followed_over_breaks(tmp_path, pauses):
    size = len(RESULT)
    server = Server(
        begun(), streamed(events((1, "running")), error=httpx.ReadError("broken")),
        streamed(events((2, "succeeded"))), told("succeeded"),
        streamed(RESULT[:9], error=httpx.ReadError("broken"), content_length=str(size)),
        streamed(RESULT[9:], status=206, content_range=f"bytes 9-{size - 1}/{size}"),
        streamed(RESULT, content_length=str(size)),
    )

    async def main():
        seen = []
        async with server.async_client() as client:
            started = await client.submit("attention", timestep=1)
            await started.wait(lambda status: seen.append(status.state))
            look = await started.result()
            path = await started.download(tmp_path / "look.json")
        return seen, look, path.read_bytes()

    seen, look, written = asyncio.run(main())
    assert seen == ["running", "succeeded"] and look.grid == (2, 2) and written == RESULT
    assert server.asked[2].headers["last-event-id"] == "1" and server.asked[5].headers["range"] == "bytes=9-"
    assert pauses == [0.5, 0.5]


def test_what_is_made_a_job_of_is_waited_for_and_fails():
    server = Server(begun(), told("running"), streamed(events((1, "failed"))),
                    told("failed", error={"message": "no"}), told("running"), told("cancelled"))

    async def main():
        async with server.async_client() as client:
            with pytest.raises(JobFailed, match="no"):
                await client.jacobian("tiny", prompt="ring", timestep=1)
            return await (await client.job("j1")).cancel()

    assert asyncio.run(main()).state == "cancelled"
