"""The listening sockets before, while and after a worker accepts; real sockets of this process."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpserve.prefork.listener.acceptor import Acceptor, ClientTerms
from mpserve.prefork.listener.listeners import UPGRADE, Listeners, are_systemds, is_open, refuse_until_ready
from mpserve.prefork.listener.rebalancer import Rebalancer
from mpserve.state.scoreboard import Scoreboard

NONE: dict[str, str] = {}
OLD_ARBITER = {UPGRADE: "1"}
SYSTEMD = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
SYSTEMDS_TO_ANOTHER = {"LISTEN_FDS": "1", "LISTEN_PID": "1"}
"""As a command of a shell has them that systemd has started with sockets."""


@pytest.fixture(autouse=True)
def _no_inheritance(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in (*SYSTEMD, UPGRADE):
        monkeypatch.delenv(variable, raising=False)
    are_systemds.cache_clear()
    yield
    are_systemds.cache_clear()


@contextmanager
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextmanager
def unix() -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(Path(folder, "s")))
        listener.listen()
        yield listener


def connects(listener: socket.socket) -> bool:
    with socket.socket(listener.family) as client:
        return client.connect_ex(listener.getsockname()) == 0


def listeners_of(*listeners: socket.socket) -> Listeners:
    board = Scoreboard(1)

    def acceptor(listener: socket.socket) -> Acceptor:
        return Acceptor(
            listener,
            asyncio.Protocol,
            ClientTerms(lambda: None, 10, 1000, lambda: None),
            board,
            board.row(0),
            Rebalancer(),
        )

    return Listeners(listeners, acceptor, 16)


@pytest.mark.parametrize(("make", "port", "inherited", "stays_open"), [
    pytest.param(tcp, None, NONE, False, id="TCP"), pytest.param(tcp, 0, NONE, True, id="port 0"),
    pytest.param(unix, None, NONE, True, id="Unix"), pytest.param(tcp, None, OLD_ARBITER, True, id="after USR2"),
    pytest.param(tcp, None, SYSTEMD, True, id="systemd's"),
    pytest.param(tcp, None, SYSTEMDS_TO_ANOTHER, False, id="systemd's, handed to another process"),
])  # fmt: skip
def test_what_can_be_opened_again_is_shut_until_a_worker_is_ready(
    make: Callable[[], "contextmanager[socket.socket]"],
    port: int | None,
    inherited: dict[str, str],
    stays_open: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    are_systemds()
    monkeypatch.delenv("LISTEN_FDS", raising=False)  # as gunicorn does when it takes the sockets
    with make() as listener:
        name = listener.getsockname()
        refuse_until_ready([listener], [name if port is None else (name[0], port)])
        assert is_open(listener) is connects(listener) is stays_open


async def test_listeners_are_opened_for_all_and_closed_for_oneself() -> None:
    with tcp() as listener:
        refuse_until_ready([listener], [listener.getsockname()])
        others = listener.dup()  # as a worker that shares it has it
        listeners = listeners_of(listener)
        assert not listeners.clients_can_connect
        listeners.open()
        listeners.open()
        assert connects(others)
        assert listeners.clients_can_connect
        listeners.pause()
        assert connects(others)  # the kernel takes it in for whoever accepts next
        listeners.open()
        listeners.close()
        assert (listener.fileno(), connects(others)) == (-1, True)
        address = others.getsockname()
        others.close()
        with socket.socket() as client:
            assert client.connect_ex(address) != 0


@pytest.mark.parametrize("inherited", [OLD_ARBITER, SYSTEMD], ids=["USR2", "systemd"])
def test_a_worker_that_loads_leaves_the_clients_of_an_inherited_socket_to_others(
    inherited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in inherited.items():
        monkeypatch.setenv(name, value)
    with tcp() as listener:
        assert not listeners_of(listener).clients_can_connect
