"""The sockets that are found among the file descriptors are lent, and stay as they are."""

import os
import socket
from pathlib import Path

import pytest

from mpserve import descriptors


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_socket_that_is_lent_stays_open_and_as_it_was(timeout: float | None) -> None:
    ours = socket.socketpair()  # as a library in C has them: they block
    with ours[0], ours[1]:
        socket.setdefaulttimeout(timeout)
        try:
            found = {lent.fileno() for lent in descriptors.sockets()}
            assert socket.getdefaulttimeout() == timeout
        finally:
            socket.setdefaulttimeout(None)
        assert {sock.fileno() for sock in ours} <= found
        assert all(os.get_blocking(sock.fileno()) for sock in ours)
        ours[0].sendall(b"x")
        assert ours[1].recv(1) == b"x"


def test_what_is_no_socket_is_not_lent() -> None:
    with Path(os.devnull).open() as file:
        assert file.fileno() in descriptors.numbers()
        assert file.fileno() not in {lent.fileno() for lent in descriptors.sockets()}
