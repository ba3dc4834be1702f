"""What each worker has counted for each model that it serves, kept in the scoreboard's shared memory when the worker dies.

Each slot has blocks of 8-byte cells. A block counts for one key, and only its slot's worker writes it, so no lock is needed;
a respawned worker goes on counting in its predecessor's blocks, and the sum over all slots is the server's. It does not
know what is counted.
"""

from collections.abc import Container, Iterable, Iterator

CELLS = 16
KEY, REVISION = 0, 1
"""The cells of a block that say whose it is; the others are free for counts."""
BLOCKS = 1024
"""Blocks of a slot: keys that one worker can count for at once."""
SLOT = BLOCKS * CELLS
"""Cells of a slot. Of the memory that they are mapped to only the pages that have been read or written are taken."""

EMPTY, CHANGING = 0, 2
"""Keys that nobody has: of a block that was never used (nor any after it), and of one that is being given to another key."""


class Counters:
    """The blocks in ``cells``, which hold zeros at first: ``SLOT`` for each slot."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def claim(self, slot: int, key: int, revision: int, live: Container[int]) -> memoryview:
        """The block of this slot that counts for ``key``, as its last holder left it, or else one that begins at zero.

        A block whose ``revision`` is not among the ``live`` ones may be taken from its key. If there is none to be had, what
        comes back is a block outside, which no sum contains.
        """
        used = list(self._used(slot))
        for block in used:
            if block[KEY] == key:
                return block
        stale = [block for block in used if block[REVISION] not in live]
        block = stale[0] if stale else self._block(slot, len(used))
        block[KEY] = CHANGING  # so that nobody adds half of what was to half of what will be
        for cell in range(REVISION + 1, CELLS):
            block[cell] = 0
        block[REVISION] = revision
        block[KEY] = key
        return block

    def of(self, slots: Iterable[int], key: int) -> list[list[int]]:
        """The cells of the blocks that count for ``key`` in these slots."""
        return [block.tolist() for slot in slots for block in self._used(slot) if block[KEY] == key]

    def _used(self, slot: int) -> Iterator[memoryview]:
        for number in range(BLOCKS):
            block = self._block(slot, number)
            if block[KEY] == EMPTY:
                return
            yield block

    def _block(self, slot: int, number: int) -> memoryview:
        if number == BLOCKS:
            return memoryview(bytearray(CELLS * 8)).cast("q")
        start = slot * SLOT + number * CELLS
        return self._cells[start : start + CELLS]
