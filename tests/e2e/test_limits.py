"""What a client may send, and what it hears when it sends more. Every refusal is JSON, and nobody else notices."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.cases import each
from tests.e2e.wire import LIVE, SOURCE, WAYS, Wire, head, post, wire
from tests.running import Server, serving


@pytest.fixture(scope="module", params=WAYS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    flags = ("--max_body_size=200000", "--header_timeout=20", *request.param)
    with serving(tmp_path_factory.mktemp("limits"), SOURCE, *flags) as running:
        yield running.wait_ready()


@contextlib.contextmanager
def connected(server: Server) -> Iterator[Wire]:
    """A connection; another one, opened before it, must be none the worse for what happens on it."""
    with wire(server) as bystander, wire(server) as connection:
        bystander.send(LIVE)
        assert bystander.response().status == 200
        yield connection
        bystander.send(LIVE)
        assert bystander.response().status == 200


@each("request_head, status, reason", [
    (head(b"x-big: " + b"x" * 5_000_000), 431, "the request head is larger than 823094 bytes"),
    (head(*[b"x-%d: 1" % number for number in range(5_000)]), 431, "more than 100 header fields"),
    (b"GET /" + b"x" * 5_000_000 + b" HTTP/1.1\r\n\r\n", 414, "the request line is longer than 4094 bytes"),
    (head(b"content-length: 5", b"transfer-encoding: chunked"), 400, "no HTTP request"),
    (head(b"transfer-encoding: chunked") + b"zzz\r\n", 400, "no HTTP request"),
])  # fmt: skip
def test_a_request_that_breaks_a_limit_is_refused_in_words(
    server: Server, request_head: bytes, status: int, reason: str
) -> None:
    with connected(server) as conn:
        conn.send(request_head)
        response = conn.response()
        assert (response.status, response.headers["content-type"]) == (status, "application/json")
        assert reason in json.loads(response.body)["error"]
        assert response.headers["connection"] == "close"
        assert conn.is_closed()


@each("announced", [True, False])
def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(server: Server, announced: bool) -> None:
    with connected(server) as conn:
        if announced:
            conn.send(head(b"content-length: 200001"))
        else:
            conn.send(head(b"transfer-encoding: chunked") + b"%x\r\n%b\r\n" % (300_000, b"x" * 300_000))
        response = conn.response()
        assert response.status == 413
        assert "200000 bytes" in json.loads(response.body)["error"]
        conn.send((b"x" * 200_001 if announced else b"0\r\n\r\n") + LIVE)
        assert conn.response().status == 200


def test_a_client_that_goes_away_while_it_is_answered_leaves_nothing_behind(server: Server) -> None:
    with wire(server) as gone:
        gone.send(post([1], seconds=0.3))
    with wire(server) as half:
        half.send(post([1])[:-5])
    with wire(server) as conn:
        conn.send(post([2]))
        assert conn.response().status == 200
    assert server.metric("mpserve_requests_in_flight") == 0
