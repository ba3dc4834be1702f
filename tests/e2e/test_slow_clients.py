"""A request head has a deadline, a body that pauses and a kept-alive connection each another one."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from tests.cases import each
from tests.e2e.wire import LIVE, SOURCE, WAYS, Wire, head, post, wire
from tests.running import Server, serving


@pytest.fixture(scope="module", params=WAYS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    flags = ("--header_timeout=0.5", "--body_timeout=1.5", "--timeout-keep-alive=2", *request.param)
    with serving(tmp_path_factory.mktemp("slow"), SOURCE, *flags) as running:
        yield running.wait_ready()


def test_a_silent_connection_is_closed(server: Server) -> None:
    with wire(server) as conn:
        assert conn.is_closed()


@each("before", [b"", LIVE])
def test_a_head_that_does_not_come_to_its_end_is_answered_with_408(server: Server, before: bytes) -> None:
    with wire(server) as conn:
        conn.send(before)
        if before:
            assert conn.response().status == 200
        conn.send(b"GET /v2/health/live HTTP/1.1\r\nho")
        response = conn.response()
        assert response.status == 408
        assert "not complete after 0.5 s" in json.loads(response.body)["error"]
        assert conn.is_closed()


@each("rest", [b"", b"\r\n"])
def test_an_idle_connection_is_closed_after_timeout_keep_alive(server: Server, rest: bytes) -> None:
    with wire(server) as conn:
        conn.send(LIVE)
        assert conn.response().status == 200
        conn.send(rest)
        assert conn.is_closed()


BODY = b'{"instances": [1]}'
LONG_BODY = head(b"content-length: %d" % len(BODY))
CHUNKS = head(b"transfer-encoding: chunked") + b"12\r\n"


def test_a_body_that_does_not_go_on_is_answered_with_408(server: Server) -> None:
    """All at once, since each takes as long as the server waits."""
    with contextlib.ExitStack() as stack:

        @each("before", [b"", LIVE, LONG_BODY + BODY])
        @each("begun", [LONG_BODY, LONG_BODY + BODY[:5], CHUNKS + BODY[:5]])
        def begin(before: bytes, begun: bytes) -> None:
            conns[before, begun] = conn = stack.enter_context(wire(server))
            conn.send(before)
            if before:
                assert conn.response().status == 200
            conn.send(begun)

        conns: dict[tuple[bytes, bytes], Wire] = {}
        begin()

        @each("before, begun", conns)
        def end(before: bytes, begun: bytes) -> None:
            response = conns[before, begun].response()
            assert response.status == 408
            assert json.loads(response.body) == {"error": "nothing more of the request body came for 1.5 s"}
            assert conns[before, begun].is_closed()

        end()
    assert "Traceback" not in server.log


def test_a_body_that_goes_on_is_not_late_however_long_it_takes(server: Server) -> None:
    with wire(server) as conn, wire(server) as clock:
        conn.send(LONG_BODY)
        for place in range(0, len(BODY), 6):
            clock.send(post([1], seconds=0.6))
            assert clock.response().status == 200
            conn.send(BODY[place : place + 6])
        assert conn.response().body == b'{"predictions":[1]}'
