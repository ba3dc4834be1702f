"""How much callers and models use, in shared memory, so that a limit holds over all workers together.

A subject, which is a caller or a model, has a place of 8-byte cells. The module knows only its key. Each slot has a cell of its
own for its requests in flight, so no count of a killed worker stays. The moment at which the next request is due has no single
writer: if two workers write it at once, one request is not counted. Nothing else can go wrong, since a moment adds nothing up.
"""

import time

PLACES = 1024
"""Subjects at the same time. A further subject gets the place of the one that was not used for longest."""
KEY, DUE, USED, IN_FLIGHT = range(4)
"""Cells of a place: whose it is; the moments of the next due request and of the last, in nanoseconds of ``time.monotonic_ns``,
which all processes share; and from the last cell on the requests in flight, by slot."""

EMPTY = 0


class Usage:
    """The places in ``cells``, zero at first, for workers in this many slots."""

    def __init__(self, cells: memoryview, slots: int) -> None:
        self.cells = cells
        self._size = IN_FLIGHT + slots

    @staticmethod
    def size(slots: int) -> int:
        """The number of cells."""
        return PLACES * (IN_FLIGHT + slots)

    def begin(self, slot: int) -> None:
        """Forget the requests in flight of the last worker in this slot."""
        for at in range(0, len(self.cells), self._size):
            if self.cells[at] == EMPTY:
                return
            self.cells[at + IN_FLIGHT + slot] = 0

    def place_of(self, key: int) -> int:
        """The place of the subject: the number of its first cell. Whoever keeps it looks at KEY before each use."""
        cells, oldest = self.cells, 0
        for at in range(0, len(cells), self._size):
            if cells[at] == key:
                return at
            if cells[at] == EMPTY:
                oldest = at
                break
            if cells[at + USED] < cells[oldest + USED]:
                oldest = at
        cells[oldest + DUE] = 0
        cells[oldest + USED] = time.monotonic_ns()
        cells[oldest] = key
        return oldest
