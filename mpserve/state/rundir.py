"""Directories in memory that exist as long as the server. The process that made a directory removes it.

No writable root is needed, and two servers on one machine share no file. Workers agree by files in these directories, which
are replaced as a whole under a lock. The module does not know the files.
"""

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mpserve.errors import ConfigurationError

MEMORY = "/dev/shm"

_made: dict[Path, int] = {}  # by directory: the pid of the process that made it


def make(purpose: str, parent: str | None = None) -> Path:
    """Make a directory in ``parent``, or else in /dev/shm, or else among the temporary files.

    Raises:
        OSError: ``parent`` is not writable.
        ConfigurationError: without a ``parent``, there is nowhere to write.
    """
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    try:
        directory = Path(tempfile.mkdtemp(prefix=f"mpserve-{purpose}-", dir=parent or memory))
    except OSError as error:
        if parent is not None:
            raise
        raise ConfigurationError(
            f"there is nowhere to write what the workers share: {error.strerror or error}; expected a writable directory"
            f" {MEMORY}, or /tmp, or one that TMPDIR names"
        ) from error
    _made[directory] = os.getpid()
    return directory


def remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    _made.pop(directory, None)


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
    temporary.write_bytes(content)
    temporary.replace(file)


@atexit.register
def _remove_own() -> None:
    # A process forked by the user's code inherits this handler. Its parent still uses the directories.
    for directory in [directory for directory, pid in _made.items() if pid == os.getpid()]:
        remove(directory)
