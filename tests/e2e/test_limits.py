"""What a client may send and how long it may take, and what it hears beyond that: JSON, and nobody else notices.

Each limit by itself is told in tests/http/server; here they are options of a server with sockets and a clock.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import each
from tests.e2e.wire import LIVE, SOURCE, WAYS, Wire, head, post, wire
from tests.running import Server, eventually, serving

FLAGS = (
    "--max_body_size=200000",
    "--header_timeout=2",
    "--body_timeout=1.5",
    "--min_body_rate=0",
    "--timeout-keep-alive=2",
)


@pytest.fixture(scope="module", params=WAYS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("limits"), SOURCE, *FLAGS, *request.param) as running:
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


@each("announced, begun, rest", [
    (True, head(b"content-length: 200001"), b"x" * 200_001),
    (False, head(b"transfer-encoding: chunked") + b"%x\r\n%b\r\n" % (300_000, b"x" * 300_000), b"0\r\n\r\n"),
])  # fmt: skip
def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(
    server: Server, announced: bool, begun: bytes, rest: bytes
) -> None:
    with connected(server) as conn:
        conn.send(begun)
        response = conn.response()
        assert response.status == 413
        assert "200000 bytes" in json.loads(response.body)["error"]
        conn.send(rest + LIVE)
        assert conn.response().status == 200


@each("is_whole", [True, False])
@each("is_reset", [True, False])
def test_a_client_that_goes_away_leaves_nothing_behind(server: Server, is_whole: bool, is_reset: bool) -> None:
    workers = server.workers()
    sent = post([1], seconds=0.1)
    with wire(server) as gone:
        gone.send(sent if is_whole else sent[:-5])
        eventually(lambda: not is_whole or server.metric("mpserve_requests_in_flight") == 1, every=0)
        if is_reset:
            gone.reset_at_close()
    with wire(server) as conn:
        conn.send(post([2]))
        assert conn.response().status == 200
    eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
    assert server.workers() == workers
    assert "Traceback" not in server.log


BODY = b'{"instances": [1]}'
LONG_BODY = head(b"content-length: %d" % len(BODY))
CHUNKS = head(b"transfer-encoding: chunked") + b"12\r\n"
LATE_HEAD = "the request head was not complete after 2 s"
LATE_BODY = "nothing more of the request body came for 1.5 s"
PAUSES = [
    (b"", b"", None), (LIVE, b"", None), (LIVE, b"\r\n", None),
    *[(before, b"GET /v2/health/live HTTP/1.1\r\nho", LATE_HEAD) for before in (b"", LIVE)],
    *[
        (before, begun, LATE_BODY)
        for before in (b"", LIVE, LONG_BODY + BODY)
        for begun in (LONG_BODY, LONG_BODY + BODY[:5], CHUNKS + BODY[:5])
    ],
]  # fmt: skip


def test_a_client_that_pauses_is_told_if_a_request_has_begun_and_hung_up_on(server: Server) -> None:
    """All at once, since each takes as long as the server waits."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(wire(server)) for _ in PAUSES]
        for connection, (before, begun, _) in zip(connections, PAUSES, strict=True):
            connection.send(before)
            assert not before or connection.response().status == 200
            connection.send(begun)
        for connection, (_, _, told) in zip(connections, PAUSES, strict=True):
            if told:
                response = connection.response()
                assert (response.status, json.loads(response.body)) == (408, {"error": told})
            assert connection.is_closed()
    assert "Traceback" not in server.log


def test_a_body_that_goes_on_is_not_late_however_long_it_takes(server: Server) -> None:
    with wire(server) as conn, wire(server) as clock:
        conn.send(LONG_BODY)
        for place in range(0, len(BODY), 6):
            clock.send(post([1], seconds=0.6))
            assert clock.response().status == 200
            conn.send(BODY[place : place + 6])
        assert conn.response().body == b'{"predictions":[1]}'


@pytest.mark.parametrize("way", WAYS)
def test_idle_connections_make_room_for_new_ones_and_busy_ones_do_not(tmp_path: Path, way: tuple[str, ...]) -> None:
    with serving(tmp_path, SOURCE, "--max_connections=4", *way) as server, contextlib.ExitStack() as opened:
        server.wait_ready()
        clients = []
        for _ in range(12):
            clients.append(opened.enter_context(wire(server)))
            clients[-1].send(LIVE)
            assert clients[-1].response().status == 200
        assert all(client.is_closed() for client in clients[:8])
        busy = clients[8:]
        for client in busy:
            client.send(post([1], seconds=0.4))
        with wire(server) as late:
            late.send(LIVE)
            assert late.response().status == 200
            assert [client.response().status for client in busy] == [200] * 4
        assert server.log.count("this worker has all 4 connections of --max_connections") >= 1
