"""Shared memory: one row of numbers per worker slot, written by that slot's worker and read by all.

The memory is an anonymous ``mmap`` made in the arbiter before the first fork, so every worker, also one forked hours
later, sees the same bytes. A row is three cache lines of eight aligned 8-byte integers. Each cell has one writer at any
time (the arbiter while the slot is being given, the worker afterwards), so no lock is needed. It knows nothing of
models beyond a bit each.

A ``memoryview`` cast to ``q`` stores an item as one 8-byte copy; ``struct.pack_into`` would write zeros first, which a
reader could see (prometheus/client_python mmap_dict.py records the same).
"""

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum

from mpserve.state.counters import SLOT, Counters

CELLS = 24
IN_FLIGHT = 4
"""The cell of a row that each request changes twice, without going through the attribute, which costs four times as much."""
MODEL_CELLS = range(8, 16)
BITS = 63
"""Bits of a cell that can be set: the 64th is its sign."""
MODELS = len(MODEL_CELLS) * BITS
"""Models that can be wanted at once."""
SLOTS = 512
"""Rows there are: a HUP doubles the workers for a while, so this serves 256 of them."""


class State(IntEnum):
    """A worker's state; the legal order is the order of the numbers."""

    EMPTY = 0
    LOADING = 1
    READY = 2
    DRAINING = 3
    EXITED = 4


class Cell:
    """An integer of a row, read and written as an attribute."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, row: "Row", owner: type) -> int:
        value: int = row.cells[self.index]
        return value

    def __set__(self, row: "Row", value: int) -> None:
        row.cells[self.index] = value


class Row:
    """One worker slot's row."""

    state = Cell(0)
    pid = Cell(1)
    age = Cell(2)
    """gunicorn's ``worker.age``: higher means forked later."""
    attempts = Cell(3)
    """Loads begun since the slot was last READY. Counted before the load, since the dead cannot count."""
    in_flight = Cell(IN_FLIGHT)
    connections = Cell(5)
    restarts = Cell(6)
    generation = Cell(7)
    """The newest wish for models that this worker has done what it could for."""
    waiting = Cell(16)
    """Requests in the queues of its models, as of its last tick."""

    def __init__(self, slot: int, cells: memoryview) -> None:
        self.slot = slot
        self.cells = cells

    @property
    def models(self) -> int:
        """Bits as in the wish: each is set while its model can answer in this worker."""
        return sum(self.cells[cell] << number * BITS for number, cell in enumerate(MODEL_CELLS))

    @models.setter
    def models(self, bits: int) -> None:
        for number, cell in enumerate(MODEL_CELLS):
            self.cells[cell] = bits >> number * BITS & (1 << BITS) - 1

    def is_live(self) -> bool:
        """Whether a worker process stands behind this row.

        The state alone does not say: a worker killed by SIGKILL leaves READY standing until its slot is given again.
        """
        if self.state not in (State.LOADING, State.READY, State.DRAINING):
            return False
        return self.pid == 0 or is_alive(self.pid)  # 0: given by the arbiter, not yet running


class Scoreboard:
    """All rows, the counters of each slot, and the few facts that concern the server as a whole."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._cells = _shared_cells((slots + 1) * CELLS)
        self.counters = Counters(_shared_cells(slots * SLOT))
        self._rows = [Row(slot, self._cells[(slot + 1) * CELLS : (slot + 2) * CELLS]) for slot in range(slots)]

    @property
    def ever_ready(self) -> bool:
        """Whether any worker has ever been READY: from then on a failing load is retried and the server goes on."""
        return bool(self._cells[0])

    def mark_ever_ready(self) -> None:
        self._cells[0] = 1

    @property
    def stopping(self) -> bool:
        """Whether the server as a whole has been told to end."""
        return bool(self._cells[2])

    @stopping.setter
    def stopping(self, told: bool) -> None:
        self._cells[2] = told

    @property
    def workers_wanted(self) -> int:
        """How many workers the configuration asks for."""
        value: int = self._cells[1]
        return value

    @workers_wanted.setter
    def workers_wanted(self, count: int) -> None:
        self._cells[1] = count

    @property
    def generation(self) -> int:
        """The newest generation of the wish for models, written under the lock of the wish."""
        value: int = self._cells[3]
        return value

    @generation.setter
    def generation(self, generation: int) -> None:
        self._cells[3] = generation

    @property
    def regions(self) -> int:
        """The newest generation of the shared memory regions that clients have registered, written under their lock."""
        value: int = self._cells[4]
        return value

    @regions.setter
    def regions(self, generation: int) -> None:
        self._cells[4] = generation

    @property
    def log_level(self) -> int:
        """The level that clients have set, as the standard library counts levels; 0 as long as they have set none."""
        value: int = self._cells[5]
        return value

    @log_level.setter
    def log_level(self, level: int) -> None:
        self._cells[5] = level

    def row(self, slot: int) -> Row:
        """The row of ``slot``; IndexError when there are more workers than rows."""
        return self._rows[slot]

    def used(self) -> Iterator[Row]:
        """Rows that a worker has held since the start. Slots are given lowest first, so the first empty one ends it."""
        for row in self._rows:
            if row.state == State.EMPTY:
                return
            yield row

    def live(self) -> list[Row]:
        return [row for row in self.used() if row.is_live()]

    def any_ready(self) -> bool:
        return any(row.state == State.READY and row.is_live() for row in self.used())

    def model_ready(self, bit: int) -> bool:
        """Whether at least one worker can answer for the wanted model of this bit."""
        return any(row.state == State.READY and row.models >> bit & 1 and row.is_live() for row in self.used())

    def all_ready(self, everything: int) -> bool:
        """Whether every worker that should be there is READY with ``everything``, the bits of the wanted models."""
        used = list(self.used())
        there = [row for row in used if row.state in (State.LOADING, State.READY)]
        live = [row for row in there if row.is_live()]
        # A worker that was retired (HUP, TTOU) is not missed. A dead one is, unless there are enough without it:
        # gunicorn does not replace the successors of a HUP that died while their elders went on.
        if len(used) < self.workers_wanted or (len(live) < len(there) and len(live) < self.workers_wanted):
            return False
        return bool(live) and all(row.state == State.READY and row.models & everything == everything for row in live)


def is_alive(pid: int) -> bool:
    """Whether there is a process of this pid, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    return True


def _shared_cells(count: int) -> memoryview:
    return memoryview(mmap.mmap(-1, count * 8)).cast("q")


class _Shared:
    board: Scoreboard | None = None


def shared() -> Scoreboard:
    """This process tree's scoreboard. Call it once before the first fork; workers inherit it."""
    if _Shared.board is None:
        _Shared.board = Scoreboard()
    return _Shared.board
