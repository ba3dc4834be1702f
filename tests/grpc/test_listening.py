"""A listening socket lets those in who have begun to connect, and then nobody."""

import asyncio
import socket
from collections import Counter
from pathlib import Path

import pytest

from mpserve.grpc.listening import stop_listening


def opened() -> Counter[Path]:
    """What the descriptors of this process stand for. Earlier tests may have left some that are closed at any time."""
    return Counter(entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())


async def test_who_has_begun_to_connect_is_let_in_and_nobody_after_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        listener.settimeout(10)
        address = listener.getsockname()
        before = opened()
        with socket.create_connection(address) as early:
            stopping = asyncio.ensure_future(stop_listening(address[1]))
            await asyncio.sleep(0)
            late = asyncio.ensure_future(asyncio.open_connection(*address))  # repeats its SYN after a second
            connection, peer = listener.accept()
            connection.close()
            assert peer == early.getsockname()
            await stopping
        with pytest.raises(ConnectionRefusedError):
            await late
        assert not opened() - before
        socket.create_connection(other.getsockname()).close()
