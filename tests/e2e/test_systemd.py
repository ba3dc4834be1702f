"""The commands of deploy/systemd, run as systemd runs them: with its socket, told when it is ready, reloaded, stopped."""

import contextlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import ROOT
from tests.e2e.steered import SOURCE, Background, ask, let, pids_of, reached
from tests.running import PATIENCE, Server, eventually, free_port, running

UNITS = ROOT / "deploy" / "systemd"
PROGRAM = "/opt/mpserve/bin/mpserve"
BECOME = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def unit(name: str) -> dict[str, list[str]]:
    """What the lines of a unit say, by their names."""
    found = defaultdict(list)
    for line in (UNITS / name).read_text().splitlines():
        if re.match(r"\w+=", line):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


SERVICE, SOCKET = unit("mpserve.service"), unit("mpserve.socket")


def one(lines: dict[str, list[str]], name: str) -> str:
    (value,) = lines[name]
    return value


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """The socket that systemd makes of the .socket unit: of IPv6, for IPv4 as well."""
    assert one(SOCKET, "ListenStream").isdecimal()
    with socket.create_server(
        ("::", port), family=socket.AF_INET6, backlog=int(one(SOCKET, "Backlog")), dualstack_ipv6=True
    ) as sock:
        yield sock


@contextlib.contextmanager
def hearing(folder: Path) -> Iterator[socket.socket]:
    """The socket by which systemd hears of its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.setblocking(False)
        yield sock


def heard(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except BlockingIOError:
        return b""


@contextlib.contextmanager
def started(folder: Path, port: int, listener: socket.socket) -> Iterator[Server]:
    """ExecStart, as the process that systemd makes: the socket is its descriptor 3, and LISTEN_PID is its own pid."""
    program, *words = shlex.split(one(SERVICE, "ExecStart").replace("/srv/models", str(folder)))
    assert program == PROGRAM
    command = [sys.executable, "-m", "mpserve", *words]
    environment = dict(line.split("=", 1) for line in SERVICE["Environment"])
    environment |= {"LISTEN_FDS": "1", "NOTIFY_SOCKET": str(folder / "notify")}
    environment |= {"MPSERVE_WORKERS": "2", "MPSERVE_HTTP_PORT": str(port)}
    before = [sys.executable, "-c", BECOME, str(listener.fileno())]
    with running([*before, *command], folder, port, environment, pass_fds=(listener.fileno(),)) as server:
        yield server


def test_systemd_may_start_reload_and_stop_it_and_no_client_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(SOURCE)
    port = free_port()
    with listening(port) as listener, hearing(tmp_path) as notices:
        with started(tmp_path, port, listener) as server:
            early = Background(lambda: ask(server))
            reached(server, tmp_path, "loading", 2)
            assert heard(notices) == b""  # not before a model is loaded
            assert not early.done()
            let(tmp_path, "load")
            assert eventually(lambda: heard(notices)) == b"READY=1"
            assert early.result().status_code == 200
            server.wait_ready(workers=2)
            old = pids_of(server)
            reload = one(SERVICE, "ExecReload").replace("$MAINPID", str(server.pid))
            subprocess.run(shlex.split(reload), check=True, timeout=PATIENCE)
            eventually(lambda: not old & set(server.workers()))
            assert not old & pids_of(server)
            held = Background(lambda: ask(server, "wait"))
            eventually(lambda: list(tmp_path.glob("waiting-*")))
            server.process.terminate()  # KillMode=mixed: to the arbiter alone
            let(tmp_path, "release")
            assert held.result().status_code == 200
            assert server.wait_end(int(one(SERVICE, "TimeoutStopSec"))) == 0
            assert heard(notices) == b""
        late = Background(lambda: ask(server))  # it waits in the socket, which systemd holds
        with started(tmp_path, port, listener):
            assert late.result().status_code == 200


def test_the_limits_of_the_unit_are_beyond_those_of_the_server() -> None:
    from mpserve.config.settings import Settings

    assert one(SERVICE, "KillMode") == "mixed"
    assert int(one(SERVICE, "TimeoutStopSec")) > Settings.graceful_timeout
    assert int(one(SERVICE, "LimitNOFILE")) >= Settings.max_connections + 128
    assert int(one(SOCKET, "ListenStream")) == Settings.http_port


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on PATH")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    for name in ("mpserve.service", "mpserve.socket"):
        (tmp_path / name).write_text((UNITS / name).read_text().replace(PROGRAM, sys.executable))
    command = ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
