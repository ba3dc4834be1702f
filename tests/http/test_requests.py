"""What an inference request brings: its headers, and its body up to the limit."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from mpserve.errors import PayloadTooLarge
from mpserve.http.requests import read_body, read_headers
from tests.asgi import core_of


def test_header_names_are_lower_case_and_repeated_headers_are_joined() -> None:
    scope = {"headers": [(b"x-a", b"1"), (b"content-encoding", b"gzip"), (b"x-a", b"2")]}
    assert read_headers(scope["headers"]) == {"x-a": "1, 2", "content-encoding": "gzip"}


def read(chunks: Iterable[bytes | None], limit: int, announced: str | None = None) -> tuple[bytes | None, int]:
    """The body that was read, or None, and how many messages were asked for; a chunk None: the client went away."""
    messages = [
        {"type": "http.disconnect"} if chunk is None else {"type": "http.request", "body": chunk, "more_body": True}
        for chunk in chunks
    ]
    messages[-1]["more_body"] = False
    asked = 0

    async def receive() -> Any:
        nonlocal asked
        asked += 1
        return messages[asked - 1]

    headers = {} if announced is None else {"content-length": announced}
    try:
        return asyncio.run(read_body(core_of(max_body_size=limit), headers, receive)), asked
    except PayloadTooLarge:
        return b"too large", asked


@pytest.mark.parametrize(
    ("chunks", "announced", "body", "asked"),
    [
        pytest.param([b"ab"], "2", b"ab", 1, id="whole"),
        pytest.param([b""], None, b"", 1, id="none"),
        pytest.param([b"ab", b"cd", b""], None, b"abcd", 3, id="chunked to the limit"),
        pytest.param([b"abcde"], "5", b"too large", 0, id="announced as too large: not read"),
        pytest.param([b"ab", b"cd", b"e", b"f"], None, b"too large", 3, id="chunked beyond: not read on"),
        pytest.param([b"abcde"], "0", b"too large", 1, id="more than announced"),
        pytest.param([b"a", b"bcdef"], "2", b"too large", 2, id="more than announced, in chunks"),
        pytest.param([b"ab", None], "4", None, 2, id="the client went away"),
    ],
)
def test_a_body_is_read_up_to_the_limit_of_four_bytes(
    chunks: list[bytes | None], announced: str | None, body: bytes | None, asked: int
) -> None:
    assert read(chunks, 4, announced) == (body, asked)
