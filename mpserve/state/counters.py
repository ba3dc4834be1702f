"""Counters in shared memory, which outlive the worker that counts. The module does not know what is counted.

Each slot has blocks of 8-byte cells. A block counts for one key, and only the slot's worker writes it, so no lock is needed. A
respawned worker goes on counting in the blocks of its slot. The sum over all slots is the count of the server.
"""

from collections.abc import Container, Iterable, Iterator

CELLS = 16
KEY, REVISION = 0, 1
"""The cells that identify a block. The others are counters."""
BLOCKS = 1024  # blocks of a slot: keys that one worker can count for at once
SLOT = BLOCKS * CELLS  # cells of a slot. Memory is allocated only for pages that are used.

EMPTY, CHANGING = 0, 2
"""Reserved keys: of a block that was never used (nor was any after it), and of a block that changes its key."""


class Counters:
    """The blocks in ``cells``: ``SLOT`` cells for each slot, zero at first."""

    def __init__(self, cells: memoryview) -> None:
        self._cells = cells

    def claim(self, slot: int, key: int, revision: int, live: Container[int]) -> memoryview:
        """The block of this slot that counts for ``key``, with its counts, or else a block of zeros.

        A block whose ``revision`` is not in ``live`` may get a new key. If all blocks are taken, the block is not in shared
        memory, and no sum contains it.
        """
        used = list(self._used(slot))
        for block in used:
            if block[KEY] == key:
                return block
        stale = [block for block in used if block[REVISION] not in live]
        block = stale[0] if stale else self._block(slot, len(used))
        block[KEY] = CHANGING  # so that nobody reads the block while it changes
        for cell in range(REVISION + 1, CELLS):
            block[cell] = 0
        block[REVISION] = revision
        block[KEY] = key
        return block

    def of(self, slots: Iterable[int], key: int) -> list[list[int]]:
        """The cells of the blocks that count for ``key`` in these slots."""
        return [block.tolist() for slot in slots for block in self._used(slot) if block[KEY] == key]

    def clear(self, slot: int, cells: Iterable[int]) -> None:
        """Set these cells of all blocks of a slot to zero."""
        for block in self._used(slot):
            for cell in cells:
                block[cell] = 0

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
