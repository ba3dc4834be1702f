"""Many simple clients end their side of the connection behind the request, and read on."""

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.wire import LIVE, WAYS, Wire, head, post, wire
from tests.running import PATIENCE, Server, eventually, serving

SOURCE = """
import time
from mpserve import Model

class Echo(Model):
    name = "m"

    def predict(self, payload, headers=None):
        time.sleep(payload.get("seconds", 0))
        return {"predictions": payload["instances"]}

class Parts(Model):
    name = "parts"

    def predict(self, payload, headers=None):
        time.sleep(payload["seconds"])
        for number in range(payload["parts"]):
            yield f"part {number} "

models = [Echo(), Parts()]
"""

PARTS = b'{"seconds": 0.3, "parts": 3}'


@pytest.fixture(scope="module", params=WAYS)
def server(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("half"), SOURCE, *request.param, target="model.py:models") as running:
        yield running.wait_ready()


def end(conn: Wire) -> None:
    conn.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("request_", [post([1]), post([1], seconds=0.5), LIVE], ids=["short", "long", "get"])
def test_who_sends_no_more_gets_the_answer(server: Server, request_: bytes) -> None:
    with wire(server) as conn:
        conn.send(request_)
        end(conn)
        response = conn.response()
        assert response.status == 200
        assert conn.is_closed()


def test_requests_sent_together_are_all_answered(server: Server) -> None:
    with wire(server) as conn:
        conn.send(post([1], seconds=0.3) + post([2]) + LIVE)
        end(conn)
        assert conn.response().body == b'{"predictions":[1]}'
        assert conn.response().body == b'{"predictions":[2]}'
        assert conn.response().body == b'{"live":true}'
        assert conn.is_closed()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_answer_in_parts_that_had_not_begun_is_sent(server: Server, version: bytes) -> None:
    target = b"POST /v1/models/parts:predict HTTP/%b\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
    with wire(server) as conn:
        conn.send(target % (version, len(PARTS), PARTS))
        end(conn)
        answer = conn.reader.read()
        assert [b"part %d " % number in answer for number in range(3)] == [True] * 3


@pytest.mark.parametrize("begun", [b"", LIVE[:10], head(b"content-length: 5") + b"{"], ids=["nothing", "head", "body"])
def test_who_ends_before_the_request_is_whole_is_hung_up_on(server: Server, begun: bytes) -> None:
    with wire(server) as conn:
        conn.send(begun)
        end(conn)
        assert conn.is_closed()


def test_a_client_that_is_gone_leaves_nothing_behind(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        sock.sendall(post([1], seconds=0.3))
    eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
    assert "Traceback" not in server.log
