"""Heads that have come before are known by their very bytes, and not too many of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.http.server.heads import MAX_HEAD_SIZE, MAX_HEADS, Head, Heads

HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"


def head(length: int = 4, name: str = "") -> Head:
    return Head(name, "1.1", True, length)


def knowing(data: bytes = HEAD + b"body", length: int = 4) -> Heads:
    heads = Heads()
    heads.remember(data, head(length))
    return heads


@pytest.mark.parametrize(
    ("size", "is_kept"), [(MAX_HEAD_SIZE, True), (MAX_HEAD_SIZE + 1, False), (2 * MAX_HEAD_SIZE, False)]
)
def test_a_long_head_is_not_remembered(size: int, is_kept: bool) -> None:
    long = HEAD.replace(b"host: x", b"host: x" + b"x" * (size - len(HEAD)))
    assert len(long) == size
    heads = knowing(long + b"body")
    assert (heads.find(long + b"body") is not None) == is_kept
    assert bool(heads._cache) == is_kept


def test_no_more_than_so_many_are_remembered_and_new_ones_always() -> None:
    heads = Heads()
    for number in range(3 * MAX_HEADS):
        text = HEAD.replace(b": x", b": %d" % number)
        heads.remember(text, head(name=str(number)))
        assert len(heads._cache) <= MAX_HEADS
        found: Any = heads.find(text + b"body")
        assert found.request == str(number)


@given(st.lists(st.sampled_from([HEAD, b"\r\n", b"POST ", b"body", b"x", HEAD[:-2]]), max_size=6).map(b"".join))
def test_what_is_found_is_the_remembered_bytes_and_nothing_else(data: bytes) -> None:
    assert (knowing().find(data) is not None) == data.startswith(HEAD)
