"""Requests as attackers and broken clients write them: what each must be answered with, by RFC 9112, on each way to the models.

Behind each stands a whole request that closes the connection. A server that reads a body where there is none, or none where
there is one, answers more requests or fewer than the table says: that is how requests are smuggled past a proxy.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.cases import each
from tests.e2e.wire import SOURCE, WAYS, wire
from tests.running import Server, serving

BODY = b'{"instances":[1]}'
LAST = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
LENGTH = b"content-length: %d" % len(BODY)
CHUNKED = b"transfer-encoding: chunked"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def sent(*fields: bytes, body: bytes = BODY, line: bytes = b"POST /v1/models/m:predict HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"host: x", *fields, b"", b""]) + body


def chunked(chunks: bytes, *fields: bytes) -> bytes:
    return sent(CHUNKED, *fields, body=chunks)


def got(target: bytes = b"/v2/health/live", *fields: bytes, line: bytes = b"GET %b HTTP/1.1") -> bytes:
    return b"\r\n".join([line % target if b"%b" in line else line, *fields, b"", b""])


ANSWERED, REFUSED = (200, 200), (400,)

CORPUS = {
    "a request": (sent(LENGTH), ANSWERED),
    "chunks": (chunked(CHUNKS), ANSWERED),
    # Request smuggling: two lengths (RFC 9112, 6.3)
    "a length and chunks": (chunked(CHUNKS, LENGTH), REFUSED),
    "chunks and a length of 0": (chunked(CHUNKS, b"content-length: 0"), REFUSED),
    "a length, then chunks": (sent(LENGTH, CHUNKED, body=CHUNKS), REFUSED),
    "two lengths": (sent(LENGTH, b"content-length: 3"), REFUSED),
    "two lengths, the last one right": (sent(b"content-length: 3", LENGTH), REFUSED),
    "a list of two lengths": (sent(b"content-length: 17, 3"), REFUSED),
    "chunked, then identity": (sent(b"transfer-encoding: chunked, identity", body=CHUNKS), REFUSED),
    "chunked twice": (sent(b"transfer-encoding: chunked, chunked", body=CHUNKS), REFUSED),
    "identity": (sent(b"transfer-encoding: identity", body=b""), REFUSED),
    "identity with a length": (sent(b"transfer-encoding: identity", LENGTH), REFUSED),
    "a coding nobody knows": (sent(b"transfer-encoding: xchunked", body=CHUNKS), REFUSED),
    "chunked in quotes": (sent(b'transfer-encoding: "chunked"', body=CHUNKS), REFUSED),
    "chunked behind a control character": (sent(b"transfer-encoding: \x0bchunked", body=CHUNKS), REFUSED),
    "chunked behind a zero": (sent(b"transfer-encoding: \0chunked", body=CHUNKS), REFUSED),
    "a space before the colon of chunked": (sent(b"transfer-encoding : chunked", body=CHUNKS), REFUSED),
    "a space before the colon of the length": (sent(b"content-length : 17"), REFUSED),
    "a tab before the colon of the length": (sent(b"content-length\t: 17"), REFUSED),
    "a name in capitals": (sent(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS), ANSWERED),
    "an underscore is no hyphen": (sent(b"content_length: 3", LENGTH), ANSWERED),
    # Bad lengths (RFC 9110, 8.6)
    "a length with a sign": (sent(b"content-length: +17"), REFUSED),
    "a negative length": (sent(b"content-length: -1"), REFUSED),
    "a hexadecimal length": (sent(b"content-length: 0x11"), REFUSED),
    "a fractional length": (sent(b"content-length: 17.0"), REFUSED),
    "a length with an underscore": (sent(b"content-length: 1_7"), REFUSED),
    "a length with a space inside": (sent(b"content-length: 1 7"), REFUSED),
    "an empty length": (sent(b"content-length:"), REFUSED),
    "a length in words": (sent(b"content-length: many"), REFUSED),
    "a length beyond 64 bits": (sent(b"content-length: 18446744073709551633"), REFUSED),
    "a length in other digits": (sent("content-length: \u0661\u0667".encode()), REFUSED),
    "spaces around a length": (sent(b"content-length:   17  "), ANSWERED),
    "a length with leading zeros": (sent(b"content-length: 0017"), ANSWERED),
    # Chunks (RFC 9112, 7.1)
    "a chunk's extension": (chunked(CHUNKS.replace(b"11\r\n", b"11;a=b\r\n")), ANSWERED),
    "trailers": (chunked(CHUNKS[:-2] + b"x-more: 1\r\n\r\n"), ANSWERED),
    "a length in the trailers": (chunked(CHUNKS[:-2] + b"content-length: 99\r\n\r\n"), REFUSED),
    "a chunk's size in capitals": (chunked(b"00000011\r\n%b\r\n0\r\n\r\n" % BODY), ANSWERED),
    "a chunk's size with a sign": (chunked(CHUNKS.replace(b"11\r\n", b"+11\r\n")), REFUSED),
    "a negative chunk": (chunked(b"-1\r\n" + CHUNKS), REFUSED),
    "a chunk's size with 0x": (chunked(CHUNKS.replace(b"11\r\n", b"0x11\r\n")), REFUSED),
    "a chunk's size with an underscore": (chunked(CHUNKS.replace(b"11\r\n", b"1_1\r\n")), REFUSED),
    "a chunk's size beyond 64 bits": (chunked(b"10000000000000011\r\n" + CHUNKS[4:]), REFUSED),
    "a chunk without a size": (chunked(b"\r\n" + CHUNKS), REFUSED),
    "a chunk that is longer than its size": (chunked(CHUNKS.replace(b"11\r\n", b"10\r\n")), REFUSED),
    "a chunk's size that ends with LF": (chunked(CHUNKS.replace(b"11\r\n", b"11\n")), REFUSED),
    "a chunk that ends with LF": (chunked(CHUNKS.replace(b"]}\r\n", b"]}\n")), REFUSED),
    "a chunk's size that ends with CR": (chunked(CHUNKS.replace(b"11\r\n", b"11\r")), REFUSED),
    "a bare LF in an extension": (chunked(CHUNKS.replace(b"11\r\n", b"11;a\nb\r\n")), REFUSED),
    # Line ends (RFC 9112, 2.2)
    "bare LFs": (sent(LENGTH).replace(b"\r\n", b"\n"), REFUSED),
    "a bare CR in a value": (sent(b"x-a: b\rc", LENGTH), REFUSED),
    "a bare LF in a value": (sent(b"x-a: b\nx-c: d", LENGTH), REFUSED),
    "a zero in a value": (sent(b"x-a: b\0c", LENGTH), REFUSED),
    "an empty line before a request": (b"\r\n" + sent(LENGTH), ANSWERED),
    "a space before a request": (b" " + sent(LENGTH), REFUSED),
    # Fields (RFC 9112, 5)
    "a folded field": (sent(b"x-a: b\r\n c", LENGTH), REFUSED),
    "a folded length": (sent(b"content-length:\r\n 17"), REFUSED),
    "a field without a colon": (sent(b"x-a", LENGTH), REFUSED),
    "a field without a name": (sent(b": b", LENGTH), REFUSED),
    "a space in a name": (sent(b"x a: b", LENGTH), REFUSED),
    "a space before the first field": (sent(LENGTH).replace(b"host", b" host"), REFUSED),
    "a name with a byte above 127": (sent(b"x-\xe9: b", LENGTH), REFUSED),
    "a value with a byte above 127": (sent(b"x-a: \xe9", LENGTH), ANSWERED),
    "an empty value": (sent(b"x-a:", LENGTH), ANSWERED),
    # Host (RFC 9112, 3.2)
    "no host": (got(), REFUSED),
    "two hosts": (got(b"/v2/health/live", b"host: x", b"host: y"), REFUSED),
    "the same host twice": (got(b"/v2/health/live", b"host: x", b"host: x"), REFUSED),
    "two hosts in one": (got(b"/v2/health/live", b"host: x, y"), REFUSED),
    "a host with a path": (got(b"/v2/health/live", b"host: x/y"), REFUSED),
    "a host with a user": (got(b"/v2/health/live", b"host: a@x"), REFUSED),
    "an empty host": (got(b"/v2/health/live", b"host:"), ANSWERED),
    "a host with a port": (got(b"/v2/health/live", b"host: x:8080"), ANSWERED),
    "a host of IPv6": (got(b"/v2/health/live", b"host: [::1]:8080"), ANSWERED),
    "no host in HTTP/1.0": (got(line=b"GET /v2/health/live HTTP/1.0"), (200,)),
    # Request lines (RFC 9112, 3)
    "HTTP/0.9": (b"GET /v2/health/live\r\n\r\n", REFUSED),
    "HTTP/0.9 with a version": (got(line=b"GET /v2/health/live HTTP/0.9"), REFUSED),
    "HTTP/1.2": (got(line=b"GET /v2/health/live HTTP/1.2"), REFUSED),
    "HTTP/2.0": (got(line=b"GET /v2/health/live HTTP/2.0"), (505,)),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", REFUSED),
    "a version in small letters": (got(b"/v2/health/live", b"host: x", line=b"GET %b http/1.1"), REFUSED),
    "a version with two digits": (got(b"/v2/health/live", b"host: x", line=b"GET %b HTTP/1.11"), REFUSED),
    "another protocol": (got(b"/v2/health/live", b"host: x", line=b"GET %b ICE/1.0"), REFUSED),
    "no target": (b"GET  HTTP/1.1\r\nhost: x\r\n\r\n", REFUSED),
    "a target without a slash": (got(b"v2/health/live", b"host: x"), REFUSED),
    "a space in a target": (got(b"/v2/health/live x", b"host: x"), REFUSED),
    "a zero in a target": (got(b"/v2/health/live\0", b"host: x"), REFUSED),
    "a whole address": (got(b"http://x/v2/health/live", b"host: x"), ANSWERED),
    "a method in small letters": (got(b"/v2/health/live", b"host: x", line=b"get %b HTTP/1.1"), REFUSED),
    "a method nobody knows": (got(b"/v2/health/live", b"host: x", line=b"FROB %b HTTP/1.1"), REFUSED),
    "CONNECT": (got(line=b"CONNECT x:443 HTTP/1.1"), (405,)),
    "the handshake of TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), REFUSED),
    # Bodies where nobody expects one
    "a body of a GET": (got(b"/v2/health/live", b"host: x", b"content-length: 4") + b"GET ", ANSWERED),
    "HEAD": (got(b"/v2/health/live", b"host: x", line=b"HEAD %b HTTP/1.1"), ANSWERED),
    "HTTP/1.0 with chunks, and then the end": (chunked(CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"), (200,)),
    "HTTP/1.0 that would stay": (sent(LENGTH, b"connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), (200,)),
    "an upgrade to HTTP/2": (sent(b"connection: upgrade", b"upgrade: h2c", LENGTH), ANSWERED),
    "an expectation nobody knows": (sent(b"expect: more", LENGTH), ANSWERED),
    "two requests in one piece": (sent(LENGTH) * 2, (200, 200, 200)),
    "a request after close": (sent(LENGTH, b"connection: close"), (200,)),
    "a body that is a request": (sent(b"content-length: %d" % len(LAST), body=LAST), (400, 200)),
}
"""By name: the bytes, and the statuses of all answers until the server closes."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serving(tmp_path_factory.mktemp("way"), SOURCE, *way)).wait_ready() for way in WAYS]


def statuses(server: Server, data: bytes) -> tuple[int, ...]:
    """Of all answers, until the server closes."""
    with wire(server) as connection:
        connection.sock.settimeout(5)
        connection.send(data + LAST)
        try:
            received = connection.reader.read()
        except TimeoutError:
            return (-1,)
    return tuple(int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", received))


@each("name", CORPUS)
def test_each_request_is_read_as_the_standard_has_it(servers: list[Server], name: str) -> None:
    data, expected = CORPUS[name]
    assert [statuses(server, data) for server in servers] == [expected] * len(servers)
