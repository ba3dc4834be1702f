"""What an inference request brings: its headers, and its body up to the limit."""

import asyncio
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import PayloadTooLarge
from mpserve.http.requests import read_headers, receive_body
from tests.cases import each


def test_header_names_are_lower_case_and_repeated_headers_are_joined() -> None:
    scope = {"headers": [(b"x-a", b"1"), (b"content-encoding", b"gzip"), (b"x-a", b"2")]}
    assert read_headers(scope["headers"]) == {"x-a": "1, 2", "content-encoding": "gzip"}


def test_space_around_a_value_does_not_count_but_what_is_no_space_does() -> None:
    read = read_headers([(b"content-length", b" \t5 \t"), (b"a", b"1 2"), (b"b", b"5\xa0"), (b"c", b"\x0b")])
    assert read == {"content-length": "5", "a": "1 2", "b": "5\xa0", "c": "\x0b"}


@each("chunks, announced, body, asked", [
    ([b"ab"], "2", b"ab", 1), ([b""], None, b"", 1),
    ([b"ab", b"cd", b""], None, b"abcd", 3),  # chunked to the limit
    ([b"abcde"], "5", b"too large", 0),  # announced as too large: not read
    ([b"ab", b"cd", b"e", b"f"], None, b"too large", 3),  # chunked beyond: not read on
    ([b"abcde"], "0", b"too large", 1),  # more than announced
    ([b"a", b"bcdef"], "2", b"too large", 2),  # more than announced, in chunks
    ([b"ab", None], "4", None, 2),  # the client went away
])  # fmt: skip
async def test_a_body_is_read_up_to_the_limit_of_four_bytes(
    chunks: list[bytes | None], announced: str | None, body: bytes | None, asked: int
) -> None:
    """A chunk None: the client went away. ``asked``: how many messages are asked for."""
    messages: asyncio.Queue[Any] = asyncio.Queue()
    for left, chunk in zip(reversed(range(len(chunks))), chunks, strict=True):
        part = {"type": "http.request", "body": chunk, "more_body": left > 0}
        messages.put_nowait({"type": "http.disconnect"} if chunk is None else part)
    headers = {} if announced is None else {"content-length": announced}
    try:
        read = await receive_body(headers, messages.get, Settings(max_body_size=4), is_json=False)
    except PayloadTooLarge:
        read = b"too large"
    assert (read, len(chunks) - messages.qsize()) == (body, asked)
