"""The rows that workers write and all read: what they say of the living, and when the server is ready."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from mpserve.state.scoreboard import CELLS, MODELS, SLOTS, Scoreboard, State
from tests.cases import each

# Python 3.12 warns of any fork of a process with threads, and other tests may have left some.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

DEAD = 2**22 + 1
"""A pid that Linux never gives (it stops at 2**22)."""


def in_child(work: Callable[[], Any]) -> int:
    """Fork, do it in the child, and give the child's pid once it has done it; the child waits to be killed."""
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(tell, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(done, 1) == b"x"
    os.close(done)
    return pid


def board_of(*rows: tuple[State, int, bool], wanted: int = 0) -> Scoreboard:
    """A scoreboard with these rows: state, models as bits, whether a process stands behind it."""
    board = Scoreboard(len(rows) + 1)
    board.workers_wanted = wanted
    for slot, (state, models, alive) in enumerate(rows):
        row = board.row(slot)
        row.state, row.models, row.pid = state, models, os.getpid() if alive else DEAD
    return board


NAMES = [
    "state",
    "pid",
    "age",
    "attempts",
    "in_flight",
    "connections",
    "restarts",
    "generation",
    "waiting",
    "failed_flushes",
    "is_spent",
]


def test_a_row_is_three_cache_lines_of_which_every_cell_is_named_once() -> None:
    board = Scoreboard(2)
    row = board.row(1)
    for number, name in enumerate(NAMES, 1):
        setattr(row, name, number)
    row.models = everything = (1 << MODELS) - 1
    assert [getattr(row, name) for name in NAMES] == list(range(1, 12))
    assert row.models == everything
    assert row.cells.nbytes == CELLS * 8 == 192
    assert bytes(board.row(0).cells) == bytes(192)


@each("bit", [0, 62, 63, 64, 125, 126, MODELS - 1])
def test_each_of_several_hundred_models_has_a_bit_of_its_own(bit: int) -> None:
    board = board_of((State.READY, 1 << bit, True))
    assert [other for other in range(MODELS) if board.model_ready(other)] == [bit]
    assert board.row(0).models == 1 << bit


def test_a_fresh_scoreboard_holds_nobody() -> None:
    board = Scoreboard()
    assert (list(board.used()), board.live(), board.any_ready(), board.all_ready(0)) == ([], [], False, False)
    assert (board.ever_ready, board.stopping, board.workers_wanted) == (False, False, 0)
    with pytest.raises(IndexError):
        board.row(SLOTS)


def test_the_servers_own_facts_are_kept_apart_from_the_rows() -> None:
    board = Scoreboard(1)
    board.mark_ever_ready()
    facts = {"workers_wanted": 7, "stopping": True, "generation": 9, "regions": 4, "log_level": 10, "hurrying": True}
    for name, value in (*facts.items(), ("stopping", False)):
        setattr(board, name, value)
        assert getattr(board, name) == value
    assert {name: getattr(board, name) for name in facts} == {**facts, "stopping": False}
    assert board.ever_ready
    assert bytes(board.row(0).cells) == bytes(192)


def test_a_forked_worker_writes_what_the_arbiter_and_a_later_fork_read() -> None:
    board = Scoreboard(2)

    def be_first() -> None:
        row = board.row(0)
        row.state, row.pid, row.models, row.in_flight = State.READY, os.getpid(), 1, 3

    def see_it() -> None:
        board.row(1).in_flight = board.row(0).in_flight + 1

    first, second = in_child(be_first), in_child(see_it)
    row = board.row(0)
    assert (row.pid, row.in_flight, board.row(1).in_flight) == (first, 3, 4)
    assert (board.live(), board.any_ready(), board.model_ready(0), board.all_ready(1)) == ([row], True, True, True)
    for pid in (first, second):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    # A worker killed by SIGKILL leaves READY standing, and is not live.
    assert (row.state, list(board.used())) == (State.READY, [row])
    assert (board.live(), board.any_ready(), board.model_ready(0), board.all_ready(1)) == ([], False, False, False)


@each("state, live", [
    (State.EMPTY, False), (State.LOADING, True), (State.READY, True), (State.DRAINING, True), (State.EXITED, False),
])  # fmt: skip
def test_a_rows_life_is_told_by_its_state_first(state: State, live: bool) -> None:
    row = board_of((state, 0, True)).row(0)
    assert row.is_live() is live
    row.pid = 0  # its worker was not forked yet
    assert row.is_live() is live


def test_a_process_of_another_user_is_alive() -> None:
    """pid 1 is root's: for anybody else, to signal it is forbidden, which says that it is there."""
    row = Scoreboard(1).row(0)
    row.state, row.pid = State.READY, 1

    def look() -> None:
        if os.getuid() == 0:
            os.setuid(65534)
        assert row.is_live()

    pid = in_child(look)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_first_empty_row_ends_those_in_use() -> None:
    board = board_of((State.READY, 1, True), (State.EXITED, 0, False), (State.LOADING, 0, True))
    assert [row.slot for row in board.used()] == [0, 1, 2]
    assert [row.slot for row in board.live()] == [0, 2]


READY, DRAINING, EXITED, LOADING = State.READY, State.DRAINING, State.EXITED, State.LOADING


@each("rows, ready", [
    ([(READY, 0b01, True)], [True, False]),  # only the first model
    ([(READY, 0b01, True), (READY, 0b10, True)], [True, True]),  # each in another worker
    ([(READY, 0b11, False)], [False, False]),  # dead
    ([(DRAINING, 0b11, True)], [False, False]),  # draining
])  # fmt: skip
def test_a_model_is_ready_if_a_ready_worker_can_answer_for_it(
    rows: list[tuple[State, int, bool]], ready: list[bool]
) -> None:
    board = board_of(*rows)
    assert [board.model_ready(index) for index in range(2)] == ready


@each("wanted, rows, all_ready", [
    (2, [(READY, 0b11, True), (READY, 0b11, True)], True),  # all
    (2, [(READY, 0b11, True)], False),  # one has not come yet
    (2, [(READY, 0b11, True), (LOADING, 0, True)], False),  # one loads
    (2, [(READY, 0b11, True), (READY, 0b01, True)], False),  # one lacks a model
    (2, [(READY, 0b11, True), (READY, 0b11, False)], False),  # one is dead
    (2, [(READY, 0b11, True), (EXITED, 0b11, False)], True),  # one was retired (TTOU)
    (2, [(READY, 0b11, True), (DRAINING, 0b11, False)], True),  # one was retired, and killed in it
    (1, [(DRAINING, 0b11, True), (READY, 0b11, True)], True),  # its elder drains (HUP)
    (1, [(READY, 0b11, True), (LOADING, 0, True)], True),  # its successor loads (HUP, max_requests)
    (1, [(DRAINING, 0b11, True), (LOADING, 0, True)], False),  # its successor loads, and it serves no more
    (1, [(READY, 0b11, True), (LOADING, 0, False)], True),  # its successor died, nobody follows
    (3, [(READY, 0b11, True), (LOADING, 0, False), (READY, 0b11, True)], False),  # too few are left
    (1, [(EXITED, 0b11, False)], False),  # the last was retired
    (1, [(DRAINING, 0b11, True)], False),  # the last is draining
    (0, [(READY, 0b11, True)], True),  # nobody asked for a number
])  # fmt: skip
def test_all_ready_waits_for_all_that_should_be_there_and_misses_no_retired_one(
    wanted: int, rows: list[tuple[State, int, bool]], all_ready: bool
) -> None:
    assert board_of(*rows, wanted=wanted).all_ready(0b11) is all_ready
