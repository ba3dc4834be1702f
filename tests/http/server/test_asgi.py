"""The application behind a connection: what it receives, and how what it sends is written."""

import asyncio
from typing import Any

import pytest

from mpserve.http.responses import Answer
from mpserve.http.server.asgi import HIGH_WATER
from mpserve.http.server.interface import ASGIApp, Receive, Scope, Send
from tests.connections import CLIENT, Client, House, chunked, echo, get, post, read, sending

APP = b"/app"
ERROR = (
    b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: application/json\r\ncontent-length: 33\r\n"
    b'connection: close\r\n\r\n{"error":"internal server error"}'
)


def start(status: int = 200, *headers: tuple[Any, Any]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, more_body: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more_body}


def long(length: int) -> tuple[bytes, bytes]:
    return (b"Content-Length", b"%d" % length)


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKS = b"transfer-encoding: chunked\r\n\r\n"
CLOSE = b"connection: close\r\n"

SENT: dict[str, tuple[bytes, ASGIApp, bytes, bool]] = {
    "length": (get(), sending(start(200, long(2)), part(b"ab")), OK + b"content-length: 2\r\n\r\nab", True),
    "parts": (get(), sending(start(200, long(2)), part(b"a", True), part(b"")), OK + b"content-length: 2\r\n\r\na",
        False),
    "two parts": (get(), sending(start(200, long(2)), part(b"a", True), part(b"b")),
        OK + b"content-length: 2\r\n\r\nab", True),
    "chunks": (get(), sending(start(), part(b"ab", True), part(b"", True), part(b"c", True), part(b"")),
        OK + CHUNKS + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", True),
    "one chunk": (get(), sending(start(), part(b"ab")), OK + CHUNKS + b"2\r\nab\r\n0\r\n\r\n", True),
    "its own chunks": (get(), sending(start(200, (b"Transfer-Encoding", b"chunked")), part(b"ab")),
        OK + CHUNKS + b"2\r\nab\r\n0\r\n\r\n", True),
    "a large part": (get(), sending(start(), part(b"x" * 70000)),
        OK + CHUNKS + b"11170\r\n" + b"x" * 70000 + b"\r\n0\r\n\r\n", True),
    "1.0": (get(version=b"1.0"), sending(start(), part(b"ab", True), part(b"c")), OK + CLOSE + b"\r\nabc", False),
    "1.0, length": (get(version=b"1.0"), sending(start(200, long(1)), part(b"a")),
        OK + b"content-length: 1\r\n" + CLOSE + b"\r\na", False),
    "HEAD": (get(method=b"HEAD"), sending(start(200, long(2)), part(b"ab")), OK + b"content-length: 2\r\n\r\n", True),
    "HEAD, no length": (get(method=b"HEAD"), sending(start(), part(b"ab")), OK + b"\r\n", True),
    "no content": (get(), sending(start(204), part(b"")), b"HTTP/1.1 204 No Content\r\n\r\n", True),
    "an unknown status": (get(), sending(start(299, long(0)), part(b"")), b"HTTP/1.1 299 \r\ncontent-length: 0\r\n\r\n",
        True),
    "it closes": (get(), sending(start(200, long(0), (b"Connection", b"x, Close")), part(b"")),
        OK + b"content-length: 0\r\nconnection: x, Close\r\n\r\n", False),
    "the client closes": (get(b"/", b"connection: close"), sending(start(200, long(0)), part(b"")),
        OK + b"content-length: 0\r\n" + CLOSE + b"\r\n", False),
    "nothing": (get(), sending(), ERROR, False), "only a head": (get(), sending(start()), ERROR, False),
    "no head": (get(), sending(part(b"a")), ERROR, False),
    "two heads": (get(), sending(start(), start()), ERROR, False),
    "too little": (get(), sending(start(200, long(2)), part(b"a")), ERROR, False),
    "too much": (get(), sending(start(200, long(2)), part(b"abc")), ERROR, False),
    "a bad status": (get(), sending(start(42), part(b"")), ERROR, False),
    "a bad name": (get(), sending(start(200, (b"a b", b"")), part(b"")), ERROR, False),
    "a bad value": (get(), sending(start(200, (b"a", b"1\r\nb: 2")), part(b"")), ERROR, False),
    "other bytes": (get(), sending(start(200, (bytearray(b"a"), memoryview(b"1")), long(0)), part(b"")),
        OK + b"a: 1\r\ncontent-length: 0\r\n\r\n", True),
    "not the end": (get(), sending(start(), part(b"a", True)), OK + CHUNKS + b"1\r\na\r\n", False),
    "too many": (get(), sending(start(), part(b"a"), part(b"b")), OK + CHUNKS + b"1\r\na\r\n0\r\n\r\n", True),
}  # fmt: skip


async def test_what_the_application_sends_is_written_as_http_has_it(caplog: pytest.LogCaptureFixture) -> None:
    for name, (sent, app, expected, is_kept) in SENT.items():
        house = House(app)
        client = house.client()
        caplog.clear()
        assert await client.ask(sent) == expected, name
        assert client.is_kept == is_kept, name
        assert bool(caplog.records) == (name == "too many" or b" 500 " in expected or name in ("parts", "not the end"))
        assert not house.server.cycles
        client.leave()
        assert house.server.is_idle


async def test_an_application_that_raises_or_cancels_itself_is_answered_for(caplog: pytest.LogCaptureFixture) -> None:
    async def cancels(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async def exits(scope: Scope, receive: Receive, send: Send) -> None:
        raise SystemExit(3)

    for app in (cancels, exits):
        client = House(app).client()
        assert await client.ask(get()) == ERROR
        assert "the ASGI application failed" in caplog.text


async def test_the_scope_is_that_of_asgi_3() -> None:
    scopes: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await sending(start(200, long(0)), part(b""))(scope, receive, send)

    house = House(app)
    client = house.client()
    client.send(get(b"/a%2Fb%C3%A9?x=%20", b"X-A: 1") + get(b"http://h/p?q") + get(b"*", method=b"OPTIONS"))
    assert (await client.told()).count(b" 200 ") == 3
    first = scopes[0]
    assert first == {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/a/bé", "raw_path": b"/a%2Fb%C3%A9", "query_string": b"x=%20", "root_path": "",
        "headers": [(b"host", b"x"), (b"x-a", b"1")], "client": CLIENT, "server": ("5.6.7.8", 80), "state": {"a": 1},
    }  # fmt: skip
    assert first["state"] is not house.server.app_state
    assert [(scope["path"], scope["query_string"]) for scope in scopes[1:]] == [("/p", b"q"), ("*", b"")]


async def test_a_client_that_waits_for_100_is_told_to_go_on_only_when_its_body_is_wanted() -> None:
    for path in (b"/direct", APP):
        head, _, body = post(b"body", b"Expect: 100-Continue", path=path).partition(b"\r\n\r\n")
        house = House()
        house.routes.at_once = False
        client = house.client()
        assert await client.ask(head + b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert house.routes.begun == []
        client.send(body)
        for begun in house.routes.begun:
            begun.answer()
        assert (await client.told()).endswith(b" body")
        assert client.is_kept
        client.send(post() + head + b"\r\n\r\n")  # behind another, its turn comes later
        assert await client.told() == b""
        house.routes.begun[-1].answer()
        assert (await client.told()).endswith(b"direct bodyHTTP/1.1 100 Continue\r\n\r\n")
    for path in (b"/direct", APP):
        client = House().client()
        client.send(post(b"x" * 2000, b"expect: 100-continue", path=path).partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        told = await client.told()
        assert told.startswith(b"HTTP/1.1 413 ")
        assert CLOSE in told
        assert client.pipe.has_ended


async def test_a_large_body_comes_no_faster_than_the_application_takes_it() -> None:
    taken: list[int] = []
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        taken.append(len(await read(receive)))
        await sending(start(200, long(0)), part(b""))(scope, receive, send)

    client = House(app).client()
    size = 4 * HIGH_WATER
    head, _, body = post(b"x" * size, path=APP).partition(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    sent = 0
    while client.pipe.is_reading_now:
        client.send(body[sent : sent + 10000])
        sent += 10000
        await asyncio.sleep(0)
    assert HIGH_WATER <= sent <= HIGH_WATER + 10000
    client.later(100)  # bytes that are not read are not late
    assert client.is_kept
    go_on.set()
    await client.told()
    assert client.pipe.is_reading_now
    assert (await client.ask(body[sent:])).startswith(OK)
    assert taken == [size]


async def test_an_early_answer_drops_the_rest_of_the_body_and_the_connection_goes_on() -> None:
    house = House(echo)
    client = house.client()
    assert (await client.ask(post(b"x" * 200_000, path=APP)[:70_000])).startswith(b"HTTP/1.1 413 ")
    client.send(b"x" * (200_000 - 70_000))
    client.later(6)
    assert client.is_kept
    rest = len(post(b"x" * 200_000, path=APP)) - 70_000 - (200_000 - 70_000)
    assert (await client.ask(b"x" * rest + post(b"next"))).endswith(b"direct next")
    client = house.client()
    client.send(post(b"x" * 200_000, b"connection: close", path=APP)[:70_000])
    assert (await client.told()).startswith(b"HTTP/1.1 413 ")
    assert client.pipe.has_ended  # and not closed, which would reset the connection
    assert not client.pipe.is_closing()


async def test_the_application_hears_of_a_client_that_leaves_and_takes_itself_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        told.append(await receive())
        await send(start())
        await send(part(b"nobody reads this"))

    house = House(app)
    for sent in (get(), chunked(b"a", path=APP)):
        client = house.client()
        await client.ask(sent)
        assert len(house.server.cycles) == house.server.unanswered == 1
        client.leave()
        assert house.server.unanswered == 1
        assert not house.server.is_idle
        assert await client.told() == b""
        assert house.server.is_idle
    assert told == [{"type": "http.disconnect"}] * 2
    assert caplog.records == []


async def test_send_waits_for_a_client_that_does_not_read_and_not_for_one_that_left() -> None:
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start())
        for number in range(3):
            await send(part(b"a", True))
            sent.append(number)
        await send(part(b""))

    for leaves in (False, True):
        sent.clear()
        house = House(app)
        client = house.client()
        client.pipe.holds = True
        assert await client.ask(get()) == OK + CHUNKS + b"1\r\na\r\n"
        assert sent == [0]
        if leaves:
            client.leave()
            assert await client.told() == b""
        else:
            client.pipe.holds = False
            client.connection.resume_writing()
            assert await client.told() == b"1\r\na\r\n" * 2 + b"0\r\n\r\n"
        assert sent == [0, 1, 2]
        assert not house.server.cycles


class Parts:
    """A streamed answer to a direct request."""

    body: None = None

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = [(b"x-a", b"1")]
        self.go_on = asyncio.Event()
        self.was_told: list[Any] = []

    async def watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send(part(b"a", True))
        leaving = asyncio.ensure_future(self.watch(receive))
        await asyncio.wait({leaving, asyncio.ensure_future(self.go_on.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            self.was_told.append("http.disconnect")
            return
        leaving.cancel()
        await send(part(b"b"))


async def test_a_streamed_answer_sends_itself_and_hears_of_a_client_that_leaves() -> None:
    head = OK + b"x-a: 1\r\nx-request-id: id\r\n"
    house = House()
    house.routes.at_once = False

    def streams(client: Client, sent: bytes, goes_on: bool = True) -> Parts:
        client.send(sent)
        parts = Parts()
        if goes_on:
            parts.go_on.set()
        house.routes.begun[-1].exchange.send(parts, b"id")
        return parts

    client = house.client()
    parts = streams(client, post() + get(APP), goes_on=False)
    assert await client.told() == head + CHUNKS + b"1\r\na\r\n"
    parts.go_on.set()
    assert (await client.told()).startswith(b"1\r\nb\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n")
    streams(client, post(b"x", b"connection: close"))
    assert await client.told() == head + CLOSE + CHUNKS + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    assert not client.is_kept
    client = house.client()
    streams(client, post(version=b"1.0"))
    assert await client.told() == head + CLOSE + b"\r\nab"
    client = house.client()
    parts = streams(client, post(), goes_on=False)
    assert await client.told() != b""
    client.leave()
    assert (await client.told(), parts.was_told) == (b"", ["http.disconnect"])
    client = house.client()
    client.send(post())
    client.leave()
    parts = Parts()
    house.routes.begun[-1].exchange.send(parts, b"id")
    assert (await client.told(), parts.was_told) == (b"", ["http.disconnect"])
    assert not house.server.cycles


async def test_an_answer_that_is_not_usual_has_its_own_head(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.routes.at_once = False
    client = house.client()
    cases: list[tuple[Any, bytes]] = [
        ((400, [(b"a", b"1")], b""), b"HTTP/1.1 400 Bad Request\r\na: 1\r\ncontent-length: 0\r\nx-request-id: id\r\n\r\n"),
        ((200, [(b"x-request-id", b"own")], b""), OK + b"x-request-id: own\r\ncontent-length: 0\r\n\r\n"),
        ((200, [], b"x" * 70000), OK + b"content-length: 70000\r\nx-request-id: id\r\n\r\n" + b"x" * 70000),
        ((200, [(b"a", b"1\n")], b"x"), ERROR.replace(CLOSE, b"x-request-id: id\r\n")),
    ]  # fmt: skip
    for (status, headers, body), expected in cases:
        client.send(post())
        house.routes.begun[-1].exchange.send(Answer(status, headers, body), b"id")
        assert await client.told() == expected
        assert client.is_kept
    client.send(post())
    house.routes.begun[-1].exchange.send(Answer(200, [(b"connection", b"close")], b""), b"id")
    assert (await client.told()).count(b"connection: close") == 1
    assert not client.is_kept
    assert "cannot carry" in caplog.text
