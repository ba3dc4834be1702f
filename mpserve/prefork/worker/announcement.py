"""Tells where the server answers, once its door is open: the address, the models, and a line to try for each of a few."""

import logging
import shlex
import socket
from collections.abc import Callable, Sequence

from mpserve.serving.repository.core import ServerCore

logger = logging.getLogger(__name__)

when_open: list[Callable[[], object]] = []
"""Called in the worker that tells: by ``mpserve dev``, to end the server before."""

MODELS_SHOWN = 3
MOST = 600
"""Characters of a body in a line to try."""
ANY_ADDRESS = ("0.0.0.0", "::", "")


async def announce(core: ServerCore, sockets: Sequence[socket.socket], tls: bool, grpc: bool) -> None:
    """Log where the server answers, if no other worker has."""
    if core.plane is None or not sockets:
        return
    try:
        (core.plane.directory / "announced").touch(exist_ok=False)
    except OSError:  # another worker has told; or no file can be made, which other parts report
        return
    for tell in when_open:
        tell()
    name = sockets[0].getsockname()
    unix = f"--unix-socket {shlex.quote(str(name))} " if sockets[0].family == socket.AF_UNIX else ""
    url = f"{'https' if tls else 'http'}://{'localhost' if unix else _host_and_port(name)}"
    names = list(core.models)
    more = f" and {len(names) - MODELS_SHOWN} more" if len(names) > MODELS_SHOWN else ""
    logger.info("serving at %s%s", url, f", gRPC on port {core.settings.grpc_port}" if grpc else "")
    if core.settings.admin_bind is not None:
        logger.info("metrics, management and the status page at %s", core.settings.admin_bind)
    logger.info("models: %s%s", ", ".join(names[:MODELS_SHOWN]) or "none", more)
    key = "-H 'Authorization: Bearer KEY' " if core.settings.api_keys_file is not None else ""
    if core.settings.log_format == "text" and (
        lines := await _lines(core, f"{unix}{'--insecure ' if tls else ''}{key}", url)
    ):
        logger.info("try:\n%s", "\n".join(lines))


async def _lines(core: ServerCore, flags: str, url: str) -> list[str]:
    from mpserve.http.management.examples import example_of  # not before a worker has forked: it imports numpy

    lines = []
    for name in list(core.models)[:MODELS_SHOWN]:
        path, body = await example_of(core, core.models[name].newest, MOST)
        data = f" -d {shlex.quote(body)}" if body else ""
        lines.append(f"curl {flags}{shlex.quote(url + path)}{data}")
    return lines


def _host_and_port(name: tuple[str, int]) -> str:
    host, port = name[:2]
    host = "localhost" if host in ANY_ADDRESS else f"[{host}]" if ":" in host else host
    return f"{host}:{port}"
