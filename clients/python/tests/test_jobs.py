"""Jobs: begun, followed over connections that break, and their results fetched in pieces."""

import base64
import json

import httpx
import numpy as np
import pytest
from mock import Breaking, Server, body, event, events, job, npz
from test_answers import attention

from windowpane import ApiError, JobFailed, UnexpectedAnswer

RESULT = json.dumps(attention()).encode()


def begun(state="queued", **changes):
    return httpx.Response(202, json=job(state, **changes), headers={"location": "/v1/jobs/j1"})


def streamed(*pieces, error=None, status=200, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, stream=Breaking(*pieces, error=error), headers=headers)


def told(state, **changes):
    return httpx.Response(200, json=job(state, **changes))


def result():
    return streamed(RESULT)


def test_a_job_is_begun_and_followed_and_read():
    server = Server(
        begun(), streamed(events((1, "running"), (2, "progress", 5),
                                 (3, "succeeded"))),
        told("succeeded"), result(),
    )
    seen = []
    with server.client() as client:
        started = client.submit("attention", model="tiny", image=b"png", timestep=500)
        assert repr(started) == "<Job j1 attention queued>"
        look = started.wait(lambda status: seen.append((status.state, status.progress.done))).result()
    assert seen == [("running", 0), ("running", 5), ("succeeded", 0)]
    assert look.layers[0].window == 3
    assert server.lines() == ["POST /v1/jobs", "GET /v1/jobs/j1/events", "GET /v1/jobs/j1", "GET /v1/jobs/j1/result"]
    request = {"model": "tiny", "image": "cG5n", "timestep": 500, "output_format": "npz"}
    assert json.loads(server.asked[0].content) == {"kind": "attention", "request": request}


def test_events_tell_what_happened():
    engine = {"message": "the engine failed", "code": "engine_error", "param": None}
    server = Server(
        begun(position=2, eta=1.5), streamed(event(1, "queued"), event(2, "running"), event(3, "progress", 1)),
        streamed(event(4, "released", 1, error=engine), event(5, "running", 1), event(6, "progress", 3), event(7, "succeeded", 10)),
        told("succeeded", eta=None),
    )
    seen = []
    with server.client() as client:
        started = client.submit("attention", timestep=1)
        assert (started.status.position, started.status.eta, started.status.progress.done) == (2, 1.5, 0)
        started.wait(seen.append)
    assert [(one.state, one.progress.done) for one in seen] == \
        [("queued", 0), ("running", 0), ("running", 1), ("queued", 1), ("running", 1), ("running", 3), ("succeeded", 10)]
    assert all((one.position, one.eta, one.error, "sequence" in one.raw) == (None, None, None, False) for one in seen)
    assert server.asked[2].headers["last-event-id"] == "3" and started.status.raw["id"] == "j1"


def test_what_the_server_records_is_read():
    recorded = b"".join(f"id: {one['id']}\nevent: {one['event']}\ndata: {json.dumps(one['data'])}\n\n".encode()
                        for one in body("job_events"))
    server = Server(httpx.Response(202, json=body("job_submit")), streamed(recorded),
                    httpx.Response(200, json=body("job_done")), httpx.Response(200, json=body("job_cancel")))
    seen = []
    with server.client() as client:
        done = client.submit("attention", timestep=1).wait(lambda status: seen.append(status.state))
        assert seen[0] == "queued" and seen[-1] == "succeeded" == done.status.state
        assert done.status.progress.done == done.status.progress.total > 0
        assert done.cancel().state == "cancelled" == done.status.state


def test_a_job_with_an_id_of_ours_is_put():
    server = Server(begun())
    with server.client() as client:
        assert client.submit("images", id="run/7", classes="each", n=50_000).id == "j1"
    assert server.lines() == ["PUT /v1/jobs/run%2F7"]
    assert server.bodies() == [{"kind": "images", "request": {"classes": "each", "n": 50_000, "output_format": "npz"}}]


@pytest.mark.parametrize("labels", [[0, 1], None])
def test_very_many_images_are_arrays(labels):
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4, 1)
    arrays = {"arr_0": pixels, "seeds": np.array([7, 8])} | ({} if labels is None else {"labels": np.array(labels)})
    file = base64.b64decode(npz({"model": "tiny"}, **arrays))
    server = Server(begun("succeeded", kind="images"), streamed(file, content_type="application/x-npz"))
    with server.client() as client:
        found = client.submit("images", n=2, seed=np.int64(7)).result()
    assert np.array_equal(found.images, pixels) and found.seeds.tolist() == [7, 8] and found.about == {"model": "tiny"}
    assert labels == (None if found.labels is None else found.labels.tolist())


def test_an_archive_of_images_is_for_downloading(tmp_path):
    def archive():
        return streamed(b"PK", content_type="application/zip")

    server = Server(begun("succeeded", kind="images"), archive(), archive())
    with server.client() as client:
        drawn = client.submit("images", n=2, output="zip")
        with pytest.raises(UnexpectedAnswer, match="an archive of PNGs, to be downloaded"):
            drawn.result()
        assert drawn.download(tmp_path / "many.zip").read_bytes() == b"PK"


def test_events_go_on_after_the_last_one(pauses):
    halves = events((2, "running"))
    server = Server(
        begun(), streamed(events((1, "queued")), halves[:-10], error=httpx.ReadError("broken")),
        httpx.ConnectError("refused"), streamed(halves[:-1], error=httpx.ReadError("broken")),
        streamed(b": alive\r\n\r\n", halves[:9], halves[9:]),
        streamed(events((3, "succeeded"))),
    )
    with server.client() as client:
        found = list(client.submit("attention", timestep=1).events())
    assert [(one.id, one.name, one.data["sequence"]) for one in found] == \
        [("1", "queued", 1), ("2", "running", 2), ("3", "succeeded", 3)]
    assert [request.headers.get("last-event-id") for request in server.asked[1:]] == [None, "1", "1", "1", "2"]
    assert pauses == [0.5, 1.0, 2.0, 0.5]


def test_a_stream_that_brings_nothing_is_given_up(pauses):
    server = Server(begun(), *[httpx.ConnectError("refused")] * 6)
    with server.client() as client, pytest.raises(httpx.ConnectError):
        client.submit("attention", timestep=1).wait()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_server_that_says_that_nothing_is_new_is_there(pauses):
    silent = [streamed(b": nothing new\n\n", error=httpx.ReadError("broken")) for _ in range(9)]
    server = Server(begun(), *silent, streamed(events((1, "succeeded"))), told("succeeded"))
    with server.client() as client:
        client.submit("attention", timestep=1).wait()
    assert pauses == [0.5] * 9


@pytest.mark.parametrize(("data", "what"), [("{", "not JSON"), ("[]", "no object")])
def test_events_that_do_not_read_are_said_to(data, what):
    server = Server(begun(), streamed(f"event: progress\ndata: {data}\n\n".encode()))
    with server.client() as client, pytest.raises(UnexpectedAnswer, match=f"event `progress` of job j1 is {what}"):
        client.submit("attention", timestep=1).wait()


@pytest.mark.parametrize(("state", "error", "code"), [
    ("failed", {"message": "the engine failed", "code": "engine_error"}, "engine_error"), ("cancelled", None, "cancelled"),
])
def test_a_job_without_a_result_says_why(state, error, code):
    server = Server(begun(), streamed(events((1, state))), told(state, error=error))
    with server.client() as client, pytest.raises(JobFailed) as caught:
        client.submit("jacobian", timestep=1).result()
    assert isinstance(caught.value, ApiError) and caught.value.code == code and caught.value.status is None


def test_a_result_goes_on_where_it_broke(tmp_path, pauses):
    size = len(RESULT)

    def rest(request):
        first = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        assert request.headers["if-range"] == '"tag"'
        headers = {"content_range": f"bytes {first}-{size - 1}/{size}"}
        broken = httpx.RemoteProtocolError("closed") if first < 200 else None
        end = 200 if broken else size
        return streamed(RESULT[first:end], error=broken, status=206, **headers)

    server = Server(
        begun("succeeded"), streamed(RESULT[:100], error=httpx.ReadError("broken"), etag='"tag"', content_length=str(size)),
        rest, rest,
    )
    seen = []
    with server.client() as client:
        path = client.submit("attention", timestep=1).download(tmp_path / "look.json", lambda *at: seen.append(at))
    assert path.read_bytes() == RESULT and [file.name for file in tmp_path.iterdir()] == ["look.json"]
    assert seen == [(100, size), (200, size), (size, size)]
    assert [request.headers.get("range") for request in server.asked[1:]] == [None, "bytes=100-", "bytes=200-"]
    assert pauses == [0.5, 0.5]


def test_another_result_is_read_from_its_beginning():
    server = Server(begun("succeeded"), streamed(RESULT + b"old", error=httpx.ReadError("broken")), result())
    with server.client() as client:
        assert client.submit("attention", timestep=1).result().grid == (2, 2)


def test_a_silent_break_is_one():
    server = Server(begun("succeeded"), streamed(RESULT[:50], content_length=str(len(RESULT))),
                    streamed(RESULT[50:], status=206, content_range=f"bytes 50-{len(RESULT) - 1}/{len(RESULT)}"))
    with server.client() as client:
        assert client.submit("attention", timestep=1).result().grid == (2, 2)


def test_a_piece_that_does_not_fit_is_refused():
    server = Server(begun("succeeded"), streamed(RESULT[:50], error=httpx.ReadError("broken")),
                    streamed(b"x", status=206, content_range="bytes 40-40/90"))
    with server.client() as client, pytest.raises(UnexpectedAnswer, match="goes on at byte 40, expected 50"):
        client.submit("attention", timestep=1).result()


def test_a_file_is_whole_or_absent(tmp_path):
    server = Server(begun("succeeded"), httpx.Response(404, json={"error": {"message": "no longer kept"}}))
    with server.client() as client, pytest.raises(ApiError, match="no longer kept"):
        client.submit("attention", timestep=1).download(tmp_path / "look.json")
    assert not (tmp_path / "look.json").exists()


def test_what_the_server_makes_a_job_of_is_waited_for():
    location = {"location": "http://windowpane.test/v1/jobs/j1"}
    server = Server(httpx.Response(202, json=job("queued"), headers=location), told("running"),
                    streamed(events((1, "succeeded"))), told("succeeded"), result())
    with server.client() as client:
        assert client.attention("tiny", prompt="ring", timestep=500).layers[1].window is None
    assert server.lines() == ["POST /v1/analysis/attention", "GET /v1/jobs/j1", "GET /v1/jobs/j1/events",
                              "GET /v1/jobs/j1", "GET /v1/jobs/j1/result"]


def test_a_job_is_given_up_and_found_again():
    server = Server(told("running"), told("cancelled"))
    with server.client() as client:
        found = client.job("j1")
        assert found.cancel().state == "cancelled" and found.status.is_over
    assert server.lines() == ["GET /v1/jobs/j1", "DELETE /v1/jobs/j1"]
