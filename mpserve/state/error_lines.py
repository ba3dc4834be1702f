"""The last error lines of each process in shared memory, so that any worker can tell them, those of a dead worker included.

Each place is written by one process, under the lock of its log handler. A line has a number, which is 0 while the line changes.
The module does not know what a line says.
"""

LINES = 8  # lines of a place
WIDTH = 128  # cells of a line: its number, its length in bytes, and its bytes
ROOM = (WIDTH - 2) * 8  # bytes of a line
PLACE = LINES * WIDTH  # cells of a place. Memory is allocated only for pages that are used.


class ErrorLines:
    """The lines in ``cells``: ``PLACE`` cells for each place, zero at first."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells
        self._bytes = cells.cast("B")

    def add(self, place: int, line: bytes) -> None:
        """Keep a line of at most ``ROOM`` bytes instead of the oldest one."""
        numbers = {self._cells[at]: at for at in self._of(place)}
        at = next((at for at in self._of(place) if not self._cells[at]), numbers[min(numbers)])
        self._cells[at] = 0
        begin = (at + 2) * 8
        self._bytes[begin : begin + len(line)] = line
        self._cells[at + 1] = len(line)
        self._cells[at] = max(numbers) + 1

    def of(self, place: int) -> list[bytes]:
        """The lines of a place, from the oldest to the newest."""
        found = {}
        for at in self._of(place):
            number, begin = self._cells[at], (at + 2) * 8
            line = bytes(self._bytes[begin : begin + self._cells[at + 1]])
            if number and number == self._cells[at]:  # the line has not changed meanwhile
                found[number] = line
        return [found[number] for number in sorted(found)]

    @staticmethod
    def _of(place: int) -> range:
        return range(place * PLACE, (place + 1) * PLACE, WIDTH)
