"""What a client may send, and what it hears when it sends more. Every refusal is JSON, and nobody else notices."""

import contextlib
import json
import socket
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


@pytest.fixture
def conn(server: Server) -> Iterator[Wire]:
    with connected(server) as connection:
        yield connection


@each("request_head, status, reason", [
    (head(b"x-big: " + b"x" * 9_000), 431, "a header field is larger than 8190 bytes"),
    (head(b"x-big: " + b"x" * 5_000_000), 431, "the request head is larger than 823094 bytes"),
    (head(*[b"x-%d: 1" % number for number in range(5_000)]), 431, "more than 100 header fields"),
    (b"GET /" + b"x" * 5_000 + b" HTTP/1.1\r\n\r\n", 414, "the request line is longer than 4094 bytes"),
    (b"GET /" + b"x" * 5_000_000 + b" HTTP/1.1\r\n\r\n", 414, "the request line is longer than 4094 bytes"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400, "no HTTP request"),
    (b"hello\r\n\r\n", 400, "no HTTP request"),
    (head(b"content-length: 5", b"transfer-encoding: chunked"), 400, "no HTTP request"),
    (head(b"content-length: -1"), 400, "no HTTP request"),
    (head(b"Host: y"), 400, "expected one Host field in the head of the request, got 2"),
    (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 400, "expected one Host field in the head of the request, got 0"),
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


def test_a_body_that_is_announced_too_large_is_refused_before_it_is_read(conn: Wire) -> None:
    conn.send(head(b"content-length: 200001"))
    response = conn.response()
    assert response.status == 413
    assert "200000 bytes" in json.loads(response.body)["error"]
    conn.send(b"x" * 200_001)  # who sends it all the same may use the connection again
    conn.send(LIVE)
    assert conn.response().status == 200


def test_a_chunked_body_that_grows_too_large_is_refused(conn: Wire) -> None:
    conn.send(head(b"transfer-encoding: chunked"))
    for _ in range(3):
        conn.send(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
    assert conn.response().status == 413
    conn.send(b"0\r\n\r\n" + LIVE)
    assert conn.response().status == 200


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(conn: Wire) -> None:
    request = post([1], b"expect: 100-continue")
    request_head, _, body = request.partition(b"\r\n\r\n")
    conn.send(request_head + b"\r\n\r\n")
    assert conn.response().status == 100
    conn.send(body)
    assert conn.response().body == b'{"predictions":[1]}'
    conn.send(LIVE)
    assert conn.response().status == 200


def test_a_client_that_asks_before_it_sends_too_much_is_told_not_to(conn: Wire) -> None:
    conn.send(head(b"content-length: 200001", b"expect: 100-continue"))
    assert conn.response().status == 413
    assert conn.is_closed()  # nobody could say whether what comes next is the body


def test_pipelined_requests_are_answered_in_order(conn: Wire) -> None:
    conn.send(post([1], seconds=0.2) + LIVE + post([2]) + LIVE + post([3]))
    bodies = [conn.response().body for _ in range(5)]
    live = b'{"live":true}'
    assert bodies == [b'{"predictions":[1]}', live, b'{"predictions":[2]}', live, b'{"predictions":[3]}']


@each("broken", [b"hello\r\n\r\n", head(b"x: " + b"x" * 9_000), head(b"transfer-encoding: chunked") + b"zzz\r\n"])
def test_a_refusal_waits_for_the_answers_to_earlier_requests(server: Server, broken: bytes) -> None:
    with connected(server) as conn:
        conn.send(post([1], seconds=0.3) + post([2]) + broken)
        assert conn.response().body == b'{"predictions":[1]}'
        assert conn.response().body == b'{"predictions":[2]}'
        assert conn.response().status in (400, 431)
        assert conn.is_closed()


def test_a_chunked_upload_is_put_together(conn: Wire) -> None:
    body = json.dumps({"instances": ["x" * 1000]}).encode()
    conn.send(head(b"transfer-encoding: chunked"))
    for start in range(0, len(body), 100):
        part = body[start : start + 100]
        conn.send(b"%x\r\n%b\r\n" % (len(part), part))
    conn.send(b"0\r\n\r\n")
    assert json.loads(conn.response().body) == {"predictions": ["x" * 1000]}


def test_http_1_0_is_answered_and_closed(conn: Wire) -> None:
    body = b'{"instances": [1]}'
    conn.send(head(b"content-length: %d" % len(body), version=b"1.0") + body)
    assert conn.response().body == b'{"predictions":[1]}'
    assert conn.is_closed()


def test_a_request_that_offers_h2c_is_answered_as_http_1(conn: Wire) -> None:
    offer = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")
    conn.send(post([1], *offer))  # what Java's HttpClient sends first
    assert conn.response().body == b'{"predictions":[1]}'
    conn.send(post([2]))
    assert conn.response().body == b'{"predictions":[2]}'
    conn.send(post([3], b"connection: close", *offer))  # `curl --http2 -H 'Connection: close'`
    assert conn.response().body == b'{"predictions":[3]}'
    assert conn.is_closed()


def test_one_byte_after_the_other_is_a_request_too(conn: Wire) -> None:
    conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post([1]):
        conn.send(bytes([byte]))
    assert conn.response().body == b'{"predictions":[1]}'


def test_a_client_that_goes_away_while_it_is_answered_leaves_nothing_behind(server: Server) -> None:
    with wire(server) as gone:
        gone.send(post([1], seconds=0.3))
    with wire(server) as half:
        half.send(post([1])[:-5])
    with wire(server) as conn:
        conn.send(post([2]))
        assert conn.response().status == 200
    assert server.metric("mpserve_requests_in_flight") == 0
