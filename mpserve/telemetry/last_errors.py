"""Keeps the last error lines of the log in shared memory, for the status page. They are in the log as before."""

import logging
import traceback
from typing import Any

import orjson

from mpserve.state.error_lines import ROOM
from mpserve.state.scoreboard import Scoreboard
from mpserve.telemetry.logging import context_of

LONGEST = 100  # characters of a name or an id


class KeepErrors(logging.Handler):
    """Keeps every line of the level ERROR or above that reaches the root logger."""

    def __init__(self, board: Scoreboard) -> None:
        super().__init__(logging.ERROR)
        self.board = board

    def emit(self, record: logging.LogRecord) -> None:
        try:
            slot = context_of(record)["slot"]
            self.board.errors.add(slot if isinstance(slot, int) else self.board.arbiter, _line(record))
        except Exception:
            self.handleError(record)


def keep_errors(board: Scoreboard) -> None:
    """Keep the errors of this process, and of those that it forks. A second call does nothing."""
    root = logging.getLogger()
    if not any(isinstance(handler, KeepErrors) for handler in root.handlers):
        root.addHandler(KeepErrors(board))


def last_errors(board: Scoreboard) -> list[dict[str, Any]]:
    """The last error lines of every process, the newest first."""
    places = [*(row.slot for row in board.used()), board.arbiter]
    lines = [orjson.loads(line) for place in places for line in board.errors.of(place)]
    return sorted(lines, key=lambda line: -line["time"])


def _line(record: logging.LogRecord) -> bytes:
    context = {name: str(value)[:LONGEST] for name, value in context_of(record).items()}
    fields = {"time": record.created, **context, "where": _where(record)[-LONGEST:]}
    message = record.getMessage().encode(errors="replace").decode()
    while len(line := orjson.dumps({**fields, "message": message})) > ROOM:
        message = f"{message[: len(message) * 3 // 4]}…" if len(message) > 1 else ""
    return line


def _where(record: logging.LogRecord) -> str:
    """The line of code that has failed, if the record says so."""
    frames = list(traceback.walk_tb(record.exc_info[2])) if record.exc_info else []
    if not frames:
        return ""
    frame, line = frames[-1]
    return f"{frame.f_code.co_filename}:{line}".encode(errors="replace").decode()
