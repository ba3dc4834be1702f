"""Tells systemd (``Type=notify``) that the server is ready, when its first worker is ready.

gunicorn tells so before its first worker exists. ``systemctl start`` would then end before a model is loaded, and the units that
wait for this one would start too early.
"""

import logging
import os
import socket

from mpserve.prefork.listener.listeners import are_systemds

logger = logging.getLogger(__name__)

NOTIFY = "NOTIFY_SOCKET"


class _Systemd:
    address = ""
    """The address at which systemd waits for the message; empty: there is no systemd, or it has the message."""


def take_over() -> None:
    """In the arbiter, before gunicorn starts: hide systemd's address from gunicorn, and notice systemd's sockets."""
    are_systemds()
    _Systemd.address = os.environ.pop(NOTIFY, _Systemd.address)


def tell_ready() -> None:
    """In the arbiter, when a worker is ready. Only the first call tells; without systemd none does."""
    address, _Systemd.address = _Systemd.address, ""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logger.error("systemd cannot be told at %s=%s that the server is ready: %s", NOTIFY, address, error)
