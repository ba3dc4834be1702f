"""Looks whether the files of the certificate have changed, and lets a running worker take them up."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mpserve.errors import ConfigurationError

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks at the files

State = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """Watches ``files``, the certificate, its key and the authorities. Made before these are read for the first time.

    Calls ``take_up`` when the files have changed since, and have been the same at two looks: a renewal writes several files.
    ``take_up`` raises OSError, ValueError or ConfigurationError if they cannot be used, and changes nothing then.
    """

    def __init__(self, files: Sequence[str], take_up: Callable[[], None]) -> None:
        self._files = [Path(file) for file in files]
        self._take_up = take_up
        self._tried = self._last = self._state()
        self._next = 0.0

    def look(self) -> None:
        """Take the files up if they have changed. To be called often."""
        now = time.monotonic()
        if not self._files or now < self._next:
            return
        self._next = now + INTERVAL
        state, before = self._state(), self._last
        self._last = state
        if state != before or state == self._tried:
            return
        self._tried = state
        names = ", ".join(map(str, self._files))
        try:
            self._take_up()
        except (OSError, ValueError, ConfigurationError) as error:  # ssl.SSLError is an OSError
            logger.error("the changed %s cannot be used, and the certificate of before serves on: %s", names, error)
        else:
            logger.info("the changed %s are in use for new connections", names)

    def _state(self) -> State:
        return tuple(map(_state_of, self._files))


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
