"""Random requests, sent over every way to the models: what one way answers, the others answer too.

The ways are our HTTP/1 server with its direct routes, our HTTP/1 server with the ASGI application, and uvicorn with the ASGI
application and h11. ``CHAOS_SEED`` repeats a run; the seed is printed.
"""

import asyncio
import contextlib
import os
import random
import re
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import h11
import pytest

from tests.bodies import ODD, PLAIN
from tests.e2e.test_same_bytes import SENT, SOURCE
from tests.running import PATIENCE, Server, eventually, free_port, running, serving

REQUESTS, STREAMS = 2_000, 1_500
AT_ONCE = 32
MAX_BODY_SIZE = 300_000
LAST = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"

PATHS = [
    "/v1/models/m:predict", "/v1/models/later:predict", "/v1/models/sum:predict", "/v1/models/m:explain",
    "/v2/models/sum/infer", "/v2/models/rows/infer", "/v2/models/awaits/infer", "/v2/models/sum/versions/1/infer",
    "/v2/models/sum/versions/2/infer", "/v2/models/sum/generate", "/v2/models/rows/generate_stream",
    "/v2/models/none/infer", "/v2/models/sum/infer/", "/v2/models/sum%2Finfer", "/v2/models/s%75m/infer",
    "/v2/models/sum/infer?a=b", "//v2/models/sum/infer", "/v2/models//infer", "/v2/models/%FF/infer",
    "/v2/models/%zz/infer", "/v2/models/sum", "/v2/models/sum/ready", "/v2", "/v1/models/m", "/nothing", "/",
    "/v2/health/ready",
]  # fmt: skip
FIELDS = [
    "content-type: application/json", "content-type: application/octet-stream", "content-type: text/plain",
    "content-type: application/cloudevents+json", "accept-encoding: gzip", "accept-encoding: gzip;q=0, *",
    "content-encoding: gzip", "content-encoding: br", "content-encoding: identity", "inference-header-content-length: 0",
    "inference-header-content-length: 10", "inference-header-content-length: 99999", "inference-header-content-length: x",
    "inference-header-content-length: -1", "ce-id: 1", "ce-source: s", "ce-type: t", "ce-specversion: 1.0",
    "ce-specversion: 9", "x-request-id: mine", "x-forwarded-for: 1.2.3.4", "x-mine: 1", "accept: text/event-stream",
    "origin: http://elsewhere", "traceparent: 00-0-0-0",
]  # fmt: skip
PIECES = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b":",
    b"\t",
    b" ",
    b"\r\n ",
    b",",
    b";",
    b"0",
    b"\x0b",
    b"\xff",
    b"+",
    b"-",
    b"_",
]
BAD_FIELDS = [
    b"content-length: 0", b"content-length: 5", b"content-length : 3", b"content-length: +3", b"content-length: 3, 3",
    b"content_length: 3", b" content-length: 3", b"transfer-encoding: chunked", b"transfer-encoding: identity",
    b"transfer-encoding: chunked, identity", b"transfer-encoding: \x0bchunked", b"connection: close", b"connection: keep-alive",
    b"connection: upgrade\r\nupgrade: h2c", b"upgrade: websocket", b"expect: 100-continue", b"host: y",
    b"inference-header-content-length: 10", b"content-encoding: gzip", b"x-request-id: a b",
]  # fmt: skip
SEEDS = [data for data in SENT.values() if len(data) < 5_000]
SINGLE = [data for data in SEEDS if data.count(b" HTTP/1.1\r\n") == data.count(b"\r\ncontent-length: ") == 1]
VOLATILE = [
    (rb"(x-request-id: )[0-9a-f]+-[0-9a-f]+-[0-9a-f]+", rb"\1-"),
    (rb"(date: |ce-time: |ce-id: )[^\r]+", rb"\1-"),
]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """The direct way, the ASGI application in our server, the ASGI application in uvicorn."""
    options = {"MPSERVE_MAX_BODY_SIZE": str(MAX_BODY_SIZE), "MPSERVE_HEADER_TIMEOUT": "1", "MPSERVE_BODY_TIMEOUT": "1"}
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("direct", "asgi", "uvicorn")]
        servers = [
            serving(folder, SOURCE, f"--fast_lane={way}", target="model.py:MODELS", env=options)
            for folder, way in zip(folders, ("yes", "no"), strict=False)
        ]
        port = free_port()
        (folders[2] / "model.py").write_text(f"{SOURCE}\nfrom mpserve import asgi_app\napp = asgi_app(MODELS)\n")
        command = [sys.executable, "-m", "uvicorn", "model:app", f"--port={port}", "--http=h11", "--log-level=warning"]
        servers.append(running(command, folders[2], port, options))
        yield [stack.enter_context(server).wait_ready() for server in servers]


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(2**32))
    print(f"\nCHAOS_SEED={seed}")
    return random.Random(seed)


def spoiled(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.choice([0, 0, 1, 2])):
        at = chance.randrange(len(body) + 1)
        piece = chance.choice([*PIECES, b"[", b"]", b"{", b"}", b'"', b"1", b"e", b"null", b""])
        body = body[:at] + piece + body[at + chance.randrange(3) :]
    return body


def a_request(chance: random.Random) -> bytes:
    """A request that is well-formed as HTTP, whatever it asks for: a seed with more fields and a spoiled body, or any."""
    head, _, body = chance.choice(SINGLE).partition(b"\r\n\r\n")
    line, *fields = [
        line for line in head.decode().split("\r\n") if not line.startswith(("content-length", "connection"))
    ]
    if chance.random() < 0.5:
        method = chance.choice(["POST"] * 12 + ["GET", "PUT", "OPTIONS"])
        line, fields, body = (
            f"{method} {chance.choice(PATHS)} HTTP/1.1",
            ["host: x"],
            chance.choice([PLAIN, *ODD])[:20_000],
        )
    fields += chance.sample(FIELDS, chance.choice([0, 0, 1, 1, 2, 3, 6]))
    body = spoiled(chance, body)
    return "\r\n".join([line, *fields, "connection: close", f"content-length: {len(body)}", "", ""]).encode() + body


def a_stream(chance: random.Random) -> list[bytes]:
    """Requests behind each other, some of them spoiled, and how the bytes are cut."""
    requests = [chance.choice(SEEDS) for _ in range(chance.randint(1, 4))]
    if chance.random() < 0.5:
        requests[-1] = requests[0]  # the same head again, which is known
    for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
        spoil(chance, requests)
    data = b"".join(requests) + LAST
    cuts = sorted(chance.sample(range(1, len(data)), chance.choice([0, 0, 0, 1, 2, 4])))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def spoil(chance: random.Random, requests: list[bytes]) -> None:
    number = chance.randrange(len(requests))
    request = requests[number]
    at = chance.randrange(len(request) + 1)
    ends = [found.end() for found in re.finditer(b"\r\n", request.partition(b"\r\n\r\n")[0] + b"\r\n")]
    end = chance.choice(ends)
    lengths = [
        b"content-length: 0",
        b"content-length: 1",
        b"content-length:",
        b"content-length:\t",
        b"content-length: -",
    ]
    requests[number] = chance.choice(
        [
            request[:at] + request[at + 1 :],
            request[:at] + bytes([chance.randrange(256)]) + request[at + 1 :],
            request[:at] + chance.choice(PIECES) + request[at:],
            request[:end] + chance.choice(BAD_FIELDS) + b"\r\n" + request[end:],
            request[:end] + chance.choice(BAD_FIELDS) + b"\r\n" + request[end:],
            request.replace(b"content-length: ", chance.choice(lengths), 1),
            chance.choice([b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]) + request,
        ]
    )


async def conversation(server: Server, pieces: list[bytes]) -> bytes:
    """All that the server writes until it closes, made comparable."""
    loop = asyncio.get_running_loop()
    received = b""
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        # What is sent behind a close may reset the connection. Asyncio's streams would then drop what was received before it.
        with contextlib.suppress(OSError):
            for number, piece in enumerate(pieces):
                await asyncio.sleep(0.002 if number else 0)
                await loop.sock_sendall(sock, piece)
        with contextlib.suppress(OSError):
            while part := await asyncio.wait_for(loop.sock_recv(sock, 1 << 16), PATIENCE):
                received += part
    for pattern, instead in VOLATILE:
        received = re.sub(pattern, instead, received)
    return received


def answers(received: bytes) -> list[tuple[int, bytes]]:
    """The status and the body of each answer."""
    found = []
    while received:
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        connection.send(h11.EndOfMessage())
        connection.receive_data(received)
        connection.receive_data(b"")
        status, body = 0, b""
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        found.append((status, body))
        received = connection.trailing_data[0]
    return found


def requests_of(data: bytes) -> int:
    """How many requests h11 finds in the bytes, before it refuses one or the client asks for the end."""
    found = 0
    data = re.sub(rb" +HTTP/1", b" HTTP/1", data)  # more spaces may stand between the words of a request line (9112, 3)
    while data := data.lstrip(b"\r\n"):  # empty lines before a request may be skipped (RFC 9112, 2.2)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
        connection.receive_data(data)
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                found += isinstance(event, h11.Request)
                if event is h11.NEED_DATA:
                    return found
        except h11.ProtocolError:
            return found
        if connection.their_state is h11.MUST_CLOSE:
            return found
        data = connection.trailing_data[0]
    return found


async def of_all(servers: list[Server], cases: list[list[bytes]]) -> list[list[bytes]]:
    turn = asyncio.Semaphore(AT_ONCE)

    async def one(pieces: list[bytes]) -> list[bytes]:
        async with turn:
            return list(await asyncio.gather(*(conversation(server, pieces) for server in servers)))

    return await asyncio.gather(*map(one, cases))


def test_a_request_is_answered_alike_on_every_way(ways: list[Server], chance: random.Random) -> None:
    cases = [a_request(chance) for _ in range(REQUESTS)]
    found = asyncio.run(of_all(ways, [[case] for case in cases]))
    differing, statuses = [], Counter[int]()
    for case, received in zip(cases, found, strict=True):
        each = [answers(one) for one in received]
        statuses[each[0][0][0]] += 1
        if any(other != each[0] for other in each) or len(each[0]) != 1:
            differing.append((case[:600], each))
    print(dict(statuses))
    assert len(statuses) > 3
    assert not differing, f"{len(differing)} differ, as\n" + "\n".join(map(str, differing[:8]))


def test_a_spoiled_stream_is_read_alike_and_holds_no_more_requests_than_h11_finds(
    ways: list[Server], chance: random.Random
) -> None:
    cases = [a_stream(chance) for _ in range(STREAMS)]
    found = asyncio.run(of_all(ways[:2], cases))
    differing, smuggled, statuses = [], [], Counter[str]()
    for case, (direct, asgi) in zip(cases, found, strict=True):
        told = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", direct)]
        statuses.update(map(str, told))
        if direct != asgi:
            differing.append((case, direct, asgi))
        last_is_refusal = bool(told) and told[-1] in (400, 405, 408, 414, 431, 505)
        if len([status for status in told if status != 100]) - last_is_refusal > requests_of(b"".join(case)):
            smuggled.append((case, direct))
    print(dict(statuses))
    assert not smuggled, f"{len(smuggled)} are read as more requests than h11 finds, as\n" + "\n".join(
        map(str, smuggled[:8])
    )
    assert not differing, f"{len(differing)} differ, as\n" + "\n".join(map(str, differing[:8]))
    for server in ways[:2]:
        eventually(lambda server=server: server.metric("mpserve_requests_in_flight") == 0)
        assert server.metric("mpserve_worker_restarts_total") == 0
