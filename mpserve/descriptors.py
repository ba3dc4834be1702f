"""The sockets among the file descriptors of this process, also those that a library in C has opened."""

import socket
from collections.abc import Iterator
from pathlib import Path


def numbers() -> list[int]:
    """The open file descriptors. One of them was open only while they were listed."""
    return [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]


def sockets() -> Iterator[socket.socket]:
    """The sockets of this process. Each is lent until the next one is taken, and stays open."""
    for number in numbers():
        try:
            lent = _socket(number)
        except OSError:  # no socket, or closed meanwhile
            continue
        try:
            yield lent
        finally:
            lent.detach()


def _socket(number: int) -> socket.socket:
    # With a default timeout Python would make the socket non-blocking, for its owner too.
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)
    try:
        return socket.socket(fileno=number)
    finally:
        socket.setdefaulttimeout(timeout)
