"""Closes the listening sockets of this process's gRPC server without a loss, while the server goes on to answer.

The kernel resets the connections that wait in a listening socket when it is closed, also if other workers share the port. And
gRPC cannot close these sockets without an end of its calls. So they are found by their port. They first drop requests for
connections, which clients repeat a second later and so reach another worker. Then they are closed.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from mpserve import descriptors

HANDSHAKES = 0.3
"""Seconds in which the handshakes that have begun reach gRPC, which accepts at once."""

SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# A program of the classic BPF for the TCP header. Source: linux/filter.h, linux/bpf_common.h.
_DROP_SYN = b"".join(
    struct.pack("=HBBI", code, if_true, if_false, value)
    for code, if_true, if_false, value in (
        (0x30, 0, 0, 13),  # load the byte of the flags
        (0x45, 0, 1, 0x02),  # is SYN set?
        (0x06, 0, 0, 0),  # then drop the segment
        (0x06, 0, 0, 0xFFFFFFFF),  # else keep all of it
    )
)


async def stop_listening(port: int) -> None:
    """Let every connection in that has begun, and no other. Where the kernel knows no filters, close at once."""
    with contextlib.suppress(OSError):
        for listener in _listeners(port):
            _drop_syn(listener)
        await asyncio.sleep(HANDSHAKES)
    for listener in _listeners(port):  # again, since gRPC may have ended meanwhile
        _unwatch(listener)
        listener.shutdown(socket.SHUT_RD)


def _listeners(port: int) -> Iterator[socket.socket]:
    """The listening sockets on this port, each lent until the next one is taken."""
    return (sock for sock in descriptors.sockets() if _listens(sock, port))


def _listens(sock: socket.socket, port: int) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) and sock.getsockname()[1] == port


def _drop_syn(listener: socket.socket) -> None:
    code = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    program = struct.pack("@HP", len(_DROP_SYN) // 8, ctypes.addressof(code))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _unwatch(listener: socket.socket) -> None:
    """Take a listener out of gRPC's poller, which would accept on the closed socket and log an error."""
    for poller in _pollers():
        with poller, contextlib.suppress(OSError):  # another poller's, as the event loop's
            poller.unregister(listener)


def _pollers() -> Iterator[select.epoll]:
    for number in descriptors.numbers():
        with contextlib.suppress(OSError):  # closed meanwhile
            if str(Path(f"/proc/self/fd/{number}").readlink()) == "anon_inode:[eventpoll]":
                yield select.epoll.fromfd(os.dup(number))
