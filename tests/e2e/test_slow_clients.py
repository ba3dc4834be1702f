"""A request head has a deadline, a kept-alive connection another one."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.wire import LIVE, SOURCE, WAYS, post, wire
from tests.running import Server, serving


@pytest.fixture(scope="module", params=WAYS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    flags = ("--header_timeout=0.5", "--timeout-keep-alive=2", *request.param)
    with serving(tmp_path_factory.mktemp("slow"), SOURCE, *flags) as running:
        yield running.wait_ready()


def test_a_silent_connection_is_closed(server: Server) -> None:
    with wire(server) as conn:
        assert conn.is_closed()


@pytest.mark.parametrize("before", [b"", LIVE], ids=["first", "second"])
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


def test_a_head_is_not_late_while_the_server_answers_an_earlier_request(server: Server) -> None:
    with wire(server) as conn:
        conn.send(post([1], seconds=1.5) + LIVE[:10])
        assert conn.response().body == b'{"predictions":[1]}'
        conn.send(LIVE[10:])
        assert conn.response().status == 200


@pytest.mark.parametrize("rest", [b"", b"\r\n"])
def test_an_idle_connection_is_closed_after_timeout_keep_alive(server: Server, rest: bytes) -> None:
    with wire(server) as conn:
        conn.send(LIVE)
        assert conn.response().status == 200
        conn.send(rest)
        assert conn.is_closed()
