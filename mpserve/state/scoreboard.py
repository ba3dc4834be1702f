"""Shared memory with one row of numbers per worker slot. The slot's worker writes its row, and all workers read all rows.

The memory is an anonymous ``mmap`` made in the arbiter before the first fork, so every worker sees the same bytes. A row is
three cache lines of eight aligned 8-byte integers. Each cell has one writer at any time (the arbiter until the fork, then the
worker), so no lock is needed. The module knows only a bit of each model.

A ``memoryview`` cast to ``q`` stores an item as one 8-byte copy. ``struct.pack_into`` would write zeros first, which another
process could read (prometheus/client_python, mmap_dict.py).
"""

import mmap
import os
from collections.abc import Iterator
from enum import IntEnum
from functools import cache

from mpserve.state.counters import SLOT, Counters
from mpserve.state.error_lines import PLACE, ErrorLines
from mpserve.state.usage import Usage

CELLS = 24
IN_FLIGHT = 4  # the cell of ``Row.in_flight``. Each request changes it twice, and the attribute would be slower.
TRACES = 8  # the cell of ``Scoreboard.traces``, which each request reads if requests are traced
MODEL_CELLS = range(8, 16)
BITS = 63  # usable bits of a cell. The 64th is the sign.
MODELS = len(MODEL_CELLS) * BITS  # maximum models in the desired state
STEADY = 5.0  # seconds that a worker must serve, or it counts as failed. A worker that is told to end earlier has not failed.
SLOTS = 512  # number of rows. A HUP doubles the workers for a while, so this is enough for 256 workers.


class State(IntEnum):
    """A worker's state. States follow each other in the order of their numbers."""

    EMPTY = 0
    LOADING = 1
    OPENING = 2
    """The models are loaded, and the worker follows changes of models. No client can reach the worker yet."""
    READY = 3
    DRAINING = 4
    EXITED = 5


class Ending(IntEnum):
    """Why a worker ended that nobody had told to end."""

    NONE = 0
    DIED = 1
    STUCK = 2
    ACCELERATOR = 3


STARTING = (State.LOADING, State.OPENING)
FOLLOWING = (State.OPENING, State.READY)
LIVING = (*STARTING, State.READY, State.DRAINING)


class Cell:
    """An attribute that is kept in a cell."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __get__(self, owner: "Row | Scoreboard", kind: type) -> int:
        value: int = owner.cells[self.index]
        return value

    def __set__(self, owner: "Row | Scoreboard", value: int) -> None:
        owner.cells[self.index] = value


class Row:
    """One worker slot's row."""

    state = Cell(0)
    pid = Cell(1)
    age = Cell(2)
    """gunicorn's ``worker.age``: a higher age means a later fork."""
    attempts = Cell(3)
    """Workers in a row that did not come to serve for ``STEADY`` seconds. Counted before the load, since a killed worker
    cannot count."""
    in_flight = Cell(IN_FLIGHT)
    connections = Cell(5)
    restarts = Cell(6)
    generation = Cell(7)
    """The generation of the desired state that this worker has followed."""
    waiting = Cell(16)
    """Requests in the queues of the models, as of the last tick."""
    failed_flushes = Cell(17)
    """Ticks on which metrics had no room in their files."""
    is_spent = Cell(18)
    """Whether the worker asks for a successor, because it has had its share of requests or of memory."""
    accelerator = Cell(19)
    """The number of the worker's GPU among the visible ones, plus 1. 0: the worker has none."""
    ticked = Cell(20)
    """When the event loop of the worker last ran its tick, in milliseconds of ``time.monotonic``, which all processes share."""
    last_ending = Cell(21)
    """An ``Ending``: why the last of the ``restarts`` of this slot was needed."""

    def __init__(self, slot: int, cells: memoryview) -> None:
        self.slot = slot
        self.cells = cells

    @property
    def models(self) -> int:
        """A bit for each model of the desired state, set while the model can answer in this worker."""
        return sum(self.cells[cell] << number * BITS for number, cell in enumerate(MODEL_CELLS))

    @models.setter
    def models(self, bits: int) -> None:
        for number, cell in enumerate(MODEL_CELLS):
            self.cells[cell] = bits >> number * BITS & (1 << BITS) - 1

    def restart(self, why: Ending) -> None:
        """Count a worker of this slot that is replaced and was not told to end."""
        self.last_ending = why
        self.restarts += 1

    def is_live(self) -> bool:
        """Whether the worker of this row exists. The row of a worker killed by SIGKILL keeps its state."""
        if self.state not in LIVING:
            return False
        return self.pid == 0 or is_alive(self.pid)  # 0: the arbiter has not yet forked the worker


class Scoreboard:
    """All rows, the counters of each slot, and the numbers of the server as a whole."""

    workers_wanted = Cell(1)
    """How many workers the configuration asks for."""
    generation = Cell(3)
    """The newest generation of the desired state, written under its lock."""
    regions = Cell(4)
    """The newest generation of the shared memory regions of clients, written under their lock."""
    log_level = Cell(5)
    """The level that clients have set, in the numbers of the standard library. 0: none."""

    ever_steady = Cell(6)
    """Whether any worker has ever served for ``STEADY`` seconds."""
    hurrying = Cell(7)
    """Whether the whole server is to end at once, without waiting for requests."""
    traces = Cell(TRACES)
    """The newest generation of the trace settings that clients have changed, written under their lock. 0: none."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.cells = _shared_cells((slots + 1) * CELLS)
        self.counters = Counters(_shared_cells(slots * SLOT))
        self.usage = Usage(_shared_cells(Usage.size(slots)), slots)
        self.arbiter = slots  # the place of the arbiter in ``errors``, behind those of the slots
        self.errors = ErrorLines(_shared_cells((slots + 1) * PLACE))
        self._rows = [Row(slot, self.cells[(slot + 1) * CELLS : (slot + 2) * CELLS]) for slot in range(slots)]

    @property
    def ever_ready(self) -> bool:
        """Whether any worker has ever been READY. From then on a failed load is tried again and the server goes on."""
        return bool(self.cells[0])

    def mark_ever_ready(self) -> None:
        self.cells[0] = 1

    @property
    def stopping(self) -> bool:
        """Whether the whole server is to end."""
        return bool(self.cells[2])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.cells[2] = value

    def row(self, slot: int) -> Row:
        """The row of ``slot``. Raises IndexError: there are more workers than rows."""
        return self._rows[slot]

    def used(self) -> Iterator[Row]:
        """The rows that have ever had a worker. The lowest slots are given first, so an empty row is the end."""
        for row in self._rows:
            if row.state == State.EMPTY:
                return
            yield row

    def live(self) -> list[Row]:
        return [row for row in self.used() if row.is_live()]

    def any_ready(self) -> bool:
        return any(row.state == State.READY and row.is_live() for row in self.used())

    def model_ready(self, bit: int) -> bool:
        """Whether at least one worker can answer for the model of this bit."""
        return any(row.state == State.READY and row.models >> bit & 1 and row.is_live() for row in self.used())

    def all_ready(self, models: int) -> bool:
        """Whether every worker of the server is READY and can answer for ``models``, as bits.

        A worker that starts is missed only if too few are READY: it may be the successor of one that serves until then.
        """
        used = list(self.used())
        serving = [row for row in used if row.state in (*STARTING, State.READY)]
        live = [row for row in serving if row.is_live()]
        ready = [row for row in live if row.state == State.READY]
        # A dead worker is missed only if too few are left: after a HUP gunicorn does not replace young workers that died while
        # the old workers went on.
        if len(used) < self.workers_wanted or (len(ready) < len(serving) and len(ready) < self.workers_wanted):
            return False
        return bool(ready) and all(row.models & models == models for row in ready)


def is_alive(pid: int) -> bool:
    """Whether there is a process with this pid, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of another user
        pass
    return True


def _shared_cells(count: int) -> memoryview:
    return memoryview(mmap.mmap(-1, count * 8)).cast("q")


@cache
def shared() -> Scoreboard:
    """The scoreboard of the arbiter and its workers. Call this before the first fork, so that workers inherit it."""
    return Scoreboard()
