"""Makes glibc keep freed memory in a worker instead of returning it to the kernel at once.

A JSON body of 1.6 MB needs ten times as much memory for a moment. By default glibc maps large blocks one by one, unmaps them
when they are freed and trims its heap, so that each such request pays for fresh pages.
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
KEPT = 128 << 20  # free bytes that are kept at the end of the heap
LARGEST = 32 << 20  # bytes from which on a block is mapped by itself: the maximum that glibc accepts


def keep_freed() -> None:
    """Keep freed memory, unless the user has set a ``MALLOC_`` variable. Does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(TRIM_THRESHOLD, KEPT)
    mallopt(MMAP_THRESHOLD, LARGEST)
