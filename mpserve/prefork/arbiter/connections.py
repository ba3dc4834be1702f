"""Names the connected sockets of this process, which every forked worker would share."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

STANDARD = {"0", "1", "2"}  # under systemd these may be sockets of the journal


def named() -> set[str]:
    """The connections, such as ``10.0.0.7:5432 (file descriptor 12)``.

    Left out are datagrams, which loggers and statsd only send, and pairs of sockets without a name, which an event loop has.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # otherwise Python would make the sockets non-blocking, for their owners too
    try:
        return set(_connections())
    finally:
        socket.setdefaulttimeout(timeout)


def _connections() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile, no socket, or not connected
            if descriptor.name not in STANDARD and (peer := _peer(int(descriptor.name))):
                yield f"{peer} (file descriptor {descriptor.name})"


def _peer(descriptor: int) -> str:
    """The other end of a connection; an empty text for another socket. Raises OSError: this is no connected socket."""
    sock = socket.socket(fileno=descriptor)
    try:
        if sock.type == socket.SOCK_DGRAM:
            return ""
        address = sock.getpeername() or sock.getsockname()  # of a Unix socket, only the server's end has a name
    finally:
        sock.detach()
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return os.fsdecode(address)
