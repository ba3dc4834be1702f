"""What the C library does with memory that a worker has freed: keep some, instead of giving all back to the kernel at once.

A body of 1.6 MB of JSON becomes ten times as much for a moment. glibc maps blocks of that size one by one and unmaps them when
they are freed, or trims them off its heap, so that each request pays for fresh pages: 7 of 22 ms were measured there.
"""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""

KEPT = 128 << 20
"""Bytes at the end of the heap that are kept when they are free; with half of it nothing was gained."""
LARGEST = 32 << 20
"""Bytes of a block from which on it is mapped by itself: the most that glibc takes."""


def keep_freed() -> None:
    """Do so, unless the user has set one of glibc's own variables for it; nothing where the C library is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(TRIM_THRESHOLD, KEPT)
    mallopt(MMAP_THRESHOLD, LARGEST)
