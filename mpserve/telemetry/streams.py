"""Standard output and error whose reader may go away: ``mpserve serve | head``, a log collector that restarts.

The server goes on. Without this, each ``print`` of a model would raise BrokenPipeError, and its request fail.
"""

import io
import logging
import os
import stat
import sys
from typing import Any

from mpserve.errors import text_of

logger = logging.getLogger(__name__)


def endure() -> None:
    """Let prints go on when the reader of a pipe is gone. To be called before the user's code is imported."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper and _has_reader(stream):
            setattr(sys, name, _enduring(stream))


def _has_reader(stream: io.TextIOWrapper) -> bool:
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _enduring(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw = _Enduring(stream.fileno(), "wb", closefd=False)
    buffer = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,  # a raw file too, as Python itself has it with -u
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Enduring(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except (BrokenPipeError, ConnectionResetError) as gone:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if self.fileno() == 1:  # a line about standard error would reach nobody
                logger.warning(
                    "what is printed from now on is lost: nobody reads the standard output (%s)", text_of(gone)
                )
            return super().write(data)
