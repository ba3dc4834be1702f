"""Heads that have come before are known by their very bytes, and not too many of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.http.server import heads as module
from mpserve.http.server.heads import LONGEST, MOST, Head, Heads

HEAD = b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"


def head(length: int = 4, name: str = "") -> Head:
    return Head(name, "1.1", True, length)


def knowing(data: bytes = HEAD + b"body", length: int = 4) -> Heads:
    heads = Heads()
    heads.remember(data, head(length))
    return heads


@pytest.mark.parametrize("behind", [b"", b"1", b"1234", b"12345", b"\r\n\r\n", HEAD])
def test_a_known_head_is_found_whatever_comes_behind_it(behind: bytes) -> None:
    found = knowing().find(HEAD + behind)
    assert found is not None
    assert (found.length, found.text) == (4, HEAD)


@pytest.mark.parametrize("data", [
    b"", b"POST", HEAD[:-1], HEAD[:-2] + b"body", b"\r\n" + HEAD + b"body", b"\r\n\r\n" + HEAD + b"body",
    b" " + HEAD + b"body", HEAD.replace(b"host", b"Host") + b"body",
    HEAD.replace(b"x\r\n", b"x\r\nconnection: close\r\n") + b"body", HEAD.replace(b": 4", b": 5") + b"body5",
])  # fmt: skip
def test_nothing_else_is(data: bytes) -> None:
    assert knowing().find(data) is None


@pytest.mark.parametrize("data", [
    b"\r\n" + HEAD, b"\r\n\r\n" + HEAD, b"\n" + HEAD, HEAD.replace(b"POST", b"post"), b"GET" + HEAD[4:], HEAD[:-2],
    b"", b"\r\n\r\n",
])  # fmt: skip
def test_what_does_not_begin_with_a_whole_head_of_a_post_is_not_remembered(data: bytes) -> None:
    assert knowing(data)._known == {}


@pytest.mark.parametrize(("size", "is_kept"), [(LONGEST, True), (LONGEST + 1, False), (2 * LONGEST, False)])
def test_a_long_head_is_not_remembered(size: int, is_kept: bool) -> None:
    long = HEAD.replace(b"host: x", b"host: x" + b"x" * (size - len(HEAD)))
    assert len(long) == size
    heads = knowing(long + b"body")
    assert (heads.find(long + b"body") is not None) == is_kept
    assert bool(heads._known) == is_kept


def test_no_more_than_so_many_are_remembered_and_new_ones_always() -> None:
    heads = Heads()
    for number in range(3 * MOST):
        text = HEAD.replace(b": x", b": %d" % number)
        heads.remember(text, head(name=str(number)))
        assert len(heads._known) <= MOST
        found: Any = heads.find(text + b"body")
        assert found.request == str(number)


def test_the_latest_meaning_of_a_head_counts() -> None:
    heads = knowing()
    heads.remember(HEAD + b"body", head(name="again"))
    found = heads.find(HEAD + b"body")
    assert found is not None
    assert found.request == "again"


@given(st.lists(st.sampled_from([HEAD, b"\r\n", b"POST ", b"body", b"x", HEAD[:-2]]), max_size=6).map(b"".join))
def test_what_is_found_is_the_remembered_bytes_and_nothing_else(data: bytes) -> None:
    assert (knowing().find(data) is not None) == data.startswith(HEAD)


def test_all_that_is_remembered_is_small() -> None:
    assert module.MOST * module.LONGEST <= 4 * 1024 * 1024
