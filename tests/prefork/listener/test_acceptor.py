"""Accepting on a listening socket, with rows of a scoreboard in place of other workers."""

import asyncio
import functools
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from typing import Any

import pytest
import uvloop

from mpserve.prefork.listener.acceptor import Acceptor, ClientTerms
from mpserve.prefork.listener.rebalancer import Rebalancer
from mpserve.state.scoreboard import Row, Scoreboard, State
from tests.cases import until
from tests.running import PATIENCE

BUSY = 1000


class Counted(asyncio.Protocol):
    """What the HTTP protocol does to the row, and who is connected."""

    def __init__(self, row: Row, made: list[Any]) -> None:
        self.row = row
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.row.connections += 1
        self.made.append(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.row.connections -= 1


class Place:
    """An open acceptor of slot 0, and one other worker, this very process, in slot 1."""

    def __init__(self, listener: socket.socket) -> None:
        board = Scoreboard(4)
        self.row, self.other = board.row(0), board.row(1)
        self.listener = listener
        for row in (self.row, self.other):
            row.state, row.pid = State.READY, os.getpid()
        self.made: list[Any] = []
        self.rebalancer = Rebalancer()
        self.terms = ClientTerms(lambda: None, 10, BUSY + 300, self.make_room)
        self.acceptor = Acceptor(
            listener, lambda: Counted(self.row, self.made), self.terms, board, self.row, self.rebalancer
        )
        self.acceptor.open(128)
        self.clients = ExitStack()

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.enter_context(socket.create_connection(self.listener.getsockname()))

    def make_room(self) -> None:
        self.made.pop(0).abort()

    async def until(self, made: int) -> None:
        await until(lambda: len(self.made) >= made and self.row.connections % BUSY == made)
        assert len(self.made) == made


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = Place(listener)
        with here.clients:
            yield here
            here.acceptor.close()
            for transport in here.made:
                transport.abort()
            await asyncio.sleep(0)


def on_both_loops(test: Callable[..., Any]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        for make in (asyncio.new_event_loop, uvloop.new_event_loop):
            with closing(make()) as loop:
                loop.run_until_complete(asyncio.wait_for(test(**fixtures), PATIENCE))

    return run


@on_both_loops
async def test_a_connection_is_left_to_a_lighter_worker_but_not_for_ever() -> None:
    async with place() as here:
        here.row.connections = BUSY
        here.connect(1)
        await asyncio.sleep(0)
        assert not here.made
        await here.until(made=1)  # the other one never came
        here.connect(50)  # and is not waited for again, but with every change of what it holds
        await here.until(made=51)


@on_both_loops
@pytest.mark.parametrize(("own", "other", "looks"), [(BUSY, 0, 1), (0, BUSY, 0), (BUSY, BUSY, 0)])
async def test_only_a_lighter_worker_is_waited_for(own: int, other: int, looks: int) -> None:
    async with place() as here:
        here.row.connections, here.other.connections = own, other
        here.connect(1)
        here.acceptor._look()
        assert here.acceptor._looks == looks
        await here.until(made=1)


@on_both_loops
@pytest.mark.parametrize(("state", "pid"), [
    pytest.param(State.EXITED, os.getpid(), id="ended"), (State.LOADING, 0), pytest.param(State.READY, 2**22 + 1, id="dead"),
])  # fmt: skip
async def test_who_cannot_accept_is_not_waited_for(state: State, pid: int) -> None:
    async with place() as here:
        here.row.connections = BUSY
        here.other.state, here.other.pid = state, pid
        here.connect(100)
        here.acceptor._look()
        await here.until(made=100)
        assert not here.acceptor._looks


@on_both_loops
async def test_what_is_queued_is_taken_in_when_the_gate_is_shut() -> None:
    async with place() as here:
        here.row.connections = BUSY
        here.connect(20)
        here.acceptor.close()
        await here.until(made=20)


@on_both_loops
@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_connection_beyond_the_most_waits_for_room(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, is_alone: bool
) -> None:
    monkeypatch.setattr("mpserve.prefork.listener.acceptor.FULL_PAUSE", 0.01)
    async with place() as here:
        here.other.state = State.EXITED if is_alone else State.READY
        here.other.connections = BUSY * 2
        here.row.connections = BUSY
        here.connect(100)
        await here.until(made=100)
        before = here.made.copy()
        caplog.clear()
        here.row.connections += BUSY
        here.connect(1)
        while before[0] in here.made:
            await asyncio.sleep(0.001)
        assert here.made[-1] is before[-1]  # still full, so that the last one waits
        here.row.connections -= BUSY
        while here.made[-1] is before[-1]:
            await asyncio.sleep(0.001)
        oldest = here.made[0]
        here.row.connections += BUSY
        here.connect(1)
        while oldest in here.made:  # so it is full again
            await asyncio.sleep(0.001)
        assert caplog.text.count("this worker has all 1300 connections") == 1


@on_both_loops
async def test_without_file_descriptors_it_pauses_and_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpserve.prefork.listener.acceptor.EXHAUSTED_PAUSE", 0.01)
    async with place() as here:
        here.connect(1)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            here.acceptor._look()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "cannot accept connections: [Errno 24]" in caplog.text
        await here.until(made=1)
