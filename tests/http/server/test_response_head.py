"""The heads of responses: checked fields are remembered, and no other response may notice."""

from typing import Any

import pytest

from mpserve.http.server.response_head import response_head

SERVER = b"date: x\r\n"


def head(*headers: Any, keep_alive: bool = True) -> bytes:
    written = response_head(200, SERVER, headers, b"content-length: 0\r\n", keep_alive=keep_alive, may_chunk=False)
    return written.text


def test_a_remembered_field_is_written_as_before() -> None:
    first, again = head((b"X-A", b"1"), (b"x-b", b"2")), head((b"X-A", b"1"), (b"x-b", b"2"))
    assert first == again == b"HTTP/1.1 200 OK\r\n" + SERVER + b"x-a: 1\r\nx-b: 2\r\ncontent-length: 0\r\n\r\n"
    assert b"x-a: 2\r\n" in head((b"X-A", b"2"))
    assert b"x-b: 1\r\n" in head((b"x-b", b"1"))


def test_a_remembered_field_still_frames_the_response() -> None:
    for _ in range(2):
        assert response_head(200, b"", [(b"Connection", b"Close")], keep_alive=True, may_chunk=False).closes
        assert response_head(200, b"", [(b"Content-Length", b"7")], keep_alive=True, may_chunk=True).length == 7
        assert response_head(200, b"", [], keep_alive=True, may_chunk=True).is_chunked


@pytest.mark.parametrize("field", [(b"a b", b"1"), (b"", b"1"), (b"a", b"1\n"), (b"a", b"1\r\nx: y"), (b"a", b"\0")])
def test_a_field_that_cannot_be_sent_is_refused_every_time(field: Any) -> None:
    for _ in range(3):
        with pytest.raises(ValueError, match="which HTTP cannot carry"):
            head(field)
