"""What goes wrong, what is tried again, and when."""

import email.utils
import time

import httpx
import pytest
from mock import Server, recorded

from windowpane import ApiError, WindowpaneError


def refusal(status, code="overloaded", message="too much is waiting", **headers):
    error = {"message": message, "type": "rate_limit_error", "param": None, "code": code, "request_id": "req_1"}
    return httpx.Response(status, json={"error": error},
                          headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_an_error_says_all_that_the_server_said():
    with Server(recorded("steps_out_of_range")).client() as client, pytest.raises(ApiError) as caught:
        client.generate("tiny", prompt="ring", steps=0)
    error = caught.value
    assert isinstance(error, WindowpaneError)
    assert (error.status, error.type, error.param, error.code) == \
        (422, "invalid_request_error", "steps", "invalid_value")
    assert error.message.startswith("`steps` is") and error.request_id and error.retry_after is None
    assert str(error) == f"{error.message} (422, invalid_value, {error.request_id})"


def test_nothing_is_tried_again_unless_asked_to(pauses):
    server = Server(refusal(429, retry_after="3"))
    with server.client() as client, pytest.raises(ApiError) as caught:
        client.models()
    assert (caught.value.retry_after, pauses, len(server.asked)) == (3.0, [], 1)


def test_it_is_tried_again_when_the_server_says(pauses):
    server = Server(refusal(429, retry_after="3"), refusal(503, code="loading"), recorded("models"))
    with server.client(retries=2) as client:
        assert len(client.models()) == 1
    assert pauses == [3.0, 1.0] and server.lines() == ["GET /v1/models"] * 3


def test_whoever_comes_back_shows_the_id_of_the_refusal(pauses):
    refused = refusal(429, retry_after="3")
    refused.headers["x-request-id"] = "req_1"
    for given, shown in [(None, "req_1"), ("mine", "mine")]:
        server = Server(refused, recorded("image"))
        with server.client(retries=1) as client:
            client.generate("sneaker", request_id=given)
        assert [request.headers.get("x-request-id") for request in server.asked] == [given, shown]


def test_it_is_tried_so_often_and_no_more(pauses):
    server = Server(*[refusal(503)] * 5)
    with server.client(retries=4) as client, pytest.raises(ApiError, match="too much is waiting"):
        client.models()
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_a_date_is_waited_for(pauses):
    later = email.utils.formatdate(time.time() + 600, usegmt=True)
    with Server(refusal(429, retry_after=later), recorded("models")).client(retries=1) as client:
        client.models()
    assert 540 < pauses[0] <= 600


@pytest.mark.parametrize("answer", [
    refusal(429, code="deadline_unmeetable", x_should_retry="false"),
    refusal(500, code="engine_error"),
    refusal(422, code="invalid_value"),
])
def test_what_will_not_change_is_not_tried_again(answer, pauses):
    server = Server(answer)
    with server.client(retries=3) as client, pytest.raises(ApiError):
        client.models()
    assert pauses == [] and len(server.asked) == 1


def test_what_something_on_the_way_says_is_an_error_too():
    with Server(httpx.Response(502, text="<html>Bad gateway</html>")).client() as client:
        with pytest.raises(ApiError, match="GET http://windowpane.test/v1/models was answered 502") as caught:
            client.models()
    assert (caught.value.status, caught.value.code) == (502, None)


def test_no_connection_is_the_transports_own_error():
    with Server(httpx.ConnectError("refused")).client(retries=3) as client, pytest.raises(httpx.ConnectError):
        client.models()
