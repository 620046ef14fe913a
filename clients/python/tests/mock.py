"""A server in memory: a list of answers, and what was asked for them. Its answers are those of a real server where
`openapi/examples` has one."""

import base64
import io
import json
from pathlib import Path

import httpx
import numpy as np

from windowpane import AsyncClient, Client

EXAMPLES = Path(__file__).resolve().parents[3] / "openapi" / "examples"


def recorded(name):
    """The response of a recorded exchange with a real server."""
    told = json.loads((EXAMPLES / f"{name}.json").read_text())["response"]
    return httpx.Response(told["status"], headers=told.get("headers"), json=told["body"])


def npz(about=None, **arrays):
    """A `.npz` as the server writes it: the JSON beside the arrays is a member of its own."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
        if about is not None:
            archive.writestr("about.json", json.dumps(about))
    return base64.b64encode(out.getvalue()).decode()


class Breaking(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body whose connection breaks after these pieces."""

    def __init__(self, *pieces, error=httpx.ReadError("broken")):
        self.pieces, self.error = pieces, error

    def __iter__(self):
        yield from self.pieces
        if self.error is not None:
            raise self.error

    async def __aiter__(self):
        for piece in self:
            yield piece


class Server:
    """Gives these answers in turn (an answer may be a function of the request, or an error of the connection), and keeps
    what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, request):
        # A multipart body is a stream until it is read.
        request.read()
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def client(self, **settings):
        return Client("http://windowpane.test", transport=httpx.MockTransport(self), **settings)

    def async_client(self, **settings):
        async def answer(request):
            await request.aread()
            return self(request)

        return AsyncClient("http://windowpane.test", transport=httpx.MockTransport(answer), **settings)

    def bodies(self):
        """The JSON bodies that came."""
        return [json.loads(request.content) for request in self.asked]

    def lines(self):
        """Method and path of each request."""
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.asked]


def body(name):
    """The body of a recorded answer."""
    return json.loads((EXAMPLES / f"{name}.json").read_text())["response"]["body"]


def job(state, **changes):
    """A job object, as the server tells one."""
    return {**body("job"), "id": "j1", "state": state, "position": None, **changes}


def event(number, name, done=0, **changes):
    """The text of an event, as the server writes one."""
    told = {**body("job_events")[0]["data"], "type": name, "sequence": number, "job": "j1",
            "progress": {"done": done, "total": 10}, **changes}
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(told)}\n\n".encode()


def events(*told):
    """The text of these events: the number and the name of each."""
    return b"".join(event(*one) for one in told)
