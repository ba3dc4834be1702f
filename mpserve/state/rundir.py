"""Directories that live as long as the server: made in memory, private to one server, removed by the process that made them.

So no writable root is needed, and two servers on one machine share no file. Workers agree by the files in them, which are
replaced whole under a lock. It must not know what is kept in them.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_made: dict[Path, int] = {}
"""Each directory with the pid that made it."""


def make(purpose: str, parent: str | None = None) -> Path:
    """A new directory for ``purpose``, in ``parent`` if given, else in /dev/shm, else where temporary files go.

    Raises:
        OSError: nothing can be written there.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"mpserve-{purpose}-", dir=parent or _memory()))
    _made[directory] = os.getpid()
    _remove_at_the_end()
    return directory


def remove(directory: Path) -> None:
    """Remove one that is not needed any more."""
    shutil.rmtree(directory, ignore_errors=True)
    _made.pop(directory, None)


def remove_all() -> None:
    """Remove all that this process made or inherited: for a worker that is the last to leave, its arbiter being gone."""
    for directory in list(_made):
        remove(directory)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, so that changes by several processes follow one another."""
    # The kernel drops the lock of a worker that is killed while it holds it.
    descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(file: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the new one, never half of one."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.write_bytes(content)
    fresh.replace(file)


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@cache
def _remove_at_the_end() -> None:
    atexit.register(_remove_own)


def _remove_own() -> None:
    # A child that a user's code forked inherits the handler, and must not remove what its parent still uses.
    for directory in [directory for directory, pid in _made.items() if pid == os.getpid()]:
        remove(directory)
