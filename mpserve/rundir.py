"""Directories that live as long as the server: made in memory, private to one server, removed by the process that made them.

So no writable root is needed, and two servers on one machine share no file. It must not know what is kept in them.
"""

import atexit
import os
import shutil
import tempfile
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


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@cache
def _remove_at_the_end() -> None:
    atexit.register(_remove_own)


def _remove_own() -> None:
    # A child that a user's code forked inherits the handler, and must not remove what its parent still uses.
    for directory in [directory for directory, pid in _made.items() if pid == os.getpid()]:
        remove(directory)
