"""What an inference request brings: its headers, and its body up to the limit."""

import asyncio
from collections.abc import Iterable
from typing import Any

from mpserve.errors import PayloadTooLarge
from mpserve.http.requests import read_body, read_headers
from tests.asgi import core_of
from tests.cases import each


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


@each(
    "chunks, announced, body, asked",
    [
        ([b"ab"], "2", b"ab", 1),  # whole
        ([b""], None, b"", 1),  # none
        ([b"ab", b"cd", b""], None, b"abcd", 3),  # chunked to the limit
        ([b"abcde"], "5", b"too large", 0),  # announced as too large: not read
        ([b"ab", b"cd", b"e", b"f"], None, b"too large", 3),  # chunked beyond: not read on
        ([b"abcde"], "0", b"too large", 1),  # more than announced
        ([b"a", b"bcdef"], "2", b"too large", 2),  # more than announced, in chunks
        ([b"ab", None], "4", None, 2),  # the client went away
    ],
)
def test_a_body_is_read_up_to_the_limit_of_four_bytes(
    chunks: list[bytes | None], announced: str | None, body: bytes | None, asked: int
) -> None:
    assert read(chunks, 4, announced) == (body, asked)
