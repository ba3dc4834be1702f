"""Directories in memory that exist as long as the server. The process that made a directory removes it.

If all processes of a server were killed, the next server that starts removes its directories: nobody holds a lock there any
more.

No writable root is needed, and two servers on one machine share no file. Workers agree by files in these directories, which
are replaced as a whole under a lock. The module does not know the files.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mpserve.errors import ConfigurationError

MEMORY = Path("/dev/shm")
ROOM = 1 << 20  # bytes that must be free in /dev/shm at the start. With less room, files on a disk are better.
PREFIX = "mpserve-"
ALIVE = "alive"
"""The file that the processes of a server hold locked. A forked process inherits the lock, and a killed one loses it."""


class _Made(NamedTuple):
    pid: int  # of the process that made the directory
    alive: int  # the descriptor that holds the lock


_made: dict[Path, _Made] = {}


def make(purpose: str, parent: str | None = None) -> Path:
    """Make a directory in ``parent``, or else in /dev/shm, or else among the temporary files.
    Directories there of servers that were killed are removed.

    Raises:
        OSError: ``parent`` is not writable.
        ConfigurationError: without a ``parent``, there is nowhere to write.
    """
    try:
        place = Path(parent or (MEMORY if _has_room(MEMORY) else tempfile.gettempdir()))
        _remove_of_the_dead(place)
        directory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=place))
    except OSError as error:
        if parent is not None:
            raise
        raise ConfigurationError(
            f"there is nowhere to write what the workers share: {error.strerror or error}; expected a writable directory"
            f" {MEMORY}, or /tmp, or one that TMPDIR names"
        ) from error
    # The file gets its name when it is locked, so that nobody takes its server for dead.
    locking = directory / f"{ALIVE}.new"
    alive = os.open(locking, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(alive, fcntl.LOCK_EX)
    locking.rename(directory / ALIVE)
    _made[directory] = _Made(os.getpid(), alive)
    return directory


def _has_room(directory: Path) -> bool:
    if not os.access(directory, os.W_OK):
        return False
    found = os.statvfs(directory)
    return found.f_blocks == 0 or found.f_bavail * found.f_frsize >= ROOM  # 0: without a limit


def _remove_of_the_dead(parent: Path) -> None:
    for file in parent.glob(f"{PREFIX}*/{ALIVE}"):
        with suppress(OSError):  # of another user, of a living server, or removed by another one that starts
            descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(file.parent, ignore_errors=True)
            finally:
                os.close(descriptor)


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    made = _made.pop(directory, None)
    if made is not None:
        os.close(made.alive)


def remove_all() -> None:
    """Remove all directories of this process and its parent. For the last worker after the arbiter was killed."""
    for directory in list(_made):
        remove(directory)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. The kernel releases the lock of a process that is killed."""
    descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def replace(file: Path, content: bytes) -> None:
    """Replace a file at once, so that a reader sees the old content or the new content."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(file)
    except OSError:  # there is no room
        temporary.unlink(missing_ok=True)
        raise


@atexit.register
def _remove_own() -> None:
    # A process forked by the user's code inherits this handler. Its parent still uses the directories.
    for directory in [directory for directory, made in _made.items() if made.pid == os.getpid()]:
        remove(directory)
