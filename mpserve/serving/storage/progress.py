"""How far a fetch is: a bar on a terminal, and lines of the log elsewhere."""

import logging
import sys
import time
from typing import TextIO

logger = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two lines of the log
WIDTH = 30


class Progress:
    """Shows the progress of one fetch."""

    def __init__(self, shown: str, stream: TextIO = sys.stderr) -> None:
        self._shown = shown
        self._stream = stream if stream.isatty() else None
        self._begin = self._last = time.monotonic()
        self._drawn = False

    def update(self, done: int, total: int | None) -> None:
        """Show how many bytes are there, of how many (None: unknown)."""
        now = time.monotonic()
        if self._stream is not None:
            self._stream.write(f"\r\x1b[K{self._bar(done, total)}")
            self._stream.flush()
            self._drawn = True
        elif now - self._last >= EVERY:
            self._last = now
            logger.info("fetching %s: %s", self._shown, _amounts(done, total))

    def end(self) -> None:
        """Remove the bar."""
        if self._stream is not None and self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _bar(self, done: int, total: int | None) -> str:
        full = int(WIDTH * done / total) if total else 0
        return f"{self._shown[-60:]} [{'#' * full}{' ' * (WIDTH - full)}] {_amounts(done, total)}"


def _amounts(done: int, total: int | None) -> str:
    if not total:
        return _size(done)
    return f"{_size(done)} of {_size(total)} ({100 * done // total} %)"


def _size(count: int) -> str:
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"
