"""Names the connected sockets of this process, which every forked worker would share."""

import os
import socket
from contextlib import suppress

from mpserve import descriptors

STANDARD = {0, 1, 2}  # under systemd these may be sockets of the journal


def named() -> set[str]:
    """The connections, such as ``10.0.0.7:5432 (file descriptor 12)``.

    Left out are datagrams, which loggers and statsd only send, and pairs of sockets without a name, which an event loop has.
    """
    found = set()
    for sock in descriptors.sockets():
        with suppress(OSError):  # not connected
            if sock.fileno() not in STANDARD and (peer := _peer(sock)):
                found.add(f"{peer} (file descriptor {sock.fileno()})")
    return found


def _peer(sock: socket.socket) -> str:
    """The other end of a connection; an empty text for another socket. Raises OSError: the socket is not connected."""
    if sock.type == socket.SOCK_DGRAM:
        return ""
    address = sock.getpeername() or sock.getsockname()  # of a Unix socket, only the server's end has a name
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return os.fsdecode(address)
