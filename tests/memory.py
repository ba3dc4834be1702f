"""Shared memory objects, as clients of the server make them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def memory(content: bytes) -> Iterator[Path]:
    """An object that holds this, to be named by its path's last part; it goes away with the block."""
    path = Path("/dev/shm", f"test-{uuid4().hex}")
    path.write_bytes(content)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
