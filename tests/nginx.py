"""A real nginx for tests, with the configuration of deploy/nginx in front of a server on this machine."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.documents import ROOT
from tests.running import PATIENCE, eventually, free_port

CONFIGURATION = ROOT / "deploy" / "nginx" / "mpserve.conf"
PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_nginx = pytest.mark.skipif(PROGRAM is None, reason="no nginx on PATH")

AROUND = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {inner}
}}
"""


class Nginx(NamedTuple):
    """The addresses at which it answers."""

    port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


def moved(text: str, places: dict[str, str]) -> str:
    """The configuration with other addresses; each of the old ones must be there once."""
    for old, new in places.items():
        text, times = re.subn(rf"(?<=\s){re.escape(old)}(?=[ ;])", new, text)
        assert times == 1, old
    return text


@contextlib.contextmanager
def nginx_before(folder: Path, http_port: int, grpc_port: int) -> Iterator[Nginx]:
    """nginx with our configuration, moved to free ports, before a server at these ports of 127.0.0.1."""
    nginx = Nginx(free_port(), free_port())
    places = {
        "127.0.0.1:8080": f"127.0.0.1:{http_port}", "127.0.0.1:8081": f"127.0.0.1:{grpc_port}",
        "listen 80": f"listen 127.0.0.1:{nginx.port}", "listen 8001": f"listen {nginx.grpc}",
    }  # fmt: skip
    user = "user root;" if os.getuid() == 0 else ""
    whole = folder / "nginx.conf"
    whole.write_text(AROUND.format(folder=folder, user=user, inner=moved(CONFIGURATION.read_text(), places)))
    assert PROGRAM is not None
    process = subprocess.Popen([PROGRAM, "-c", str(whole), "-p", str(folder)], stdin=subprocess.DEVNULL)

    def listens() -> bool:
        assert process.poll() is None, (folder / "nginx.log").read_text()
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", nginx.port)) == 0

    try:
        eventually(listens)
        yield nginx
    finally:
        process.terminate()
        process.wait(PATIENCE)
