"""The last errors of the log, as the status page has them."""

import logging

from mpserve.state.error_lines import ROOM
from mpserve.state.scoreboard import Scoreboard, State
from mpserve.telemetry.last_errors import KeepErrors, last_errors
from tests.cases import each


def logger_to(board: Scoreboard) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(KeepErrors(board))
    return logger


def test_errors_are_kept_with_their_context_and_other_lines_are_not() -> None:
    board = Scoreboard()
    logger = logger_to(board)
    board.row(0).state = State.READY
    logger.warning("a warning")
    logger.error("the model %s failed", "iris")
    try:
        raise ValueError("no")
    except ValueError:
        logger.critical("it failed", exc_info=True, extra={"slot": 0, "model": "m", "request_id": "r"})
    newest, oldest = last_errors(board)
    assert (oldest["message"], oldest["slot"], oldest["where"]) == ("the model iris failed", "-", "")
    assert (newest["message"], newest["slot"], newest["model"], newest["request_id"]) == ("it failed", "0", "m", "r")
    assert newest["where"].rpartition(":")[0].endswith("test_last_errors.py")
    assert newest["time"] >= oldest["time"]


@each("message", ["é" * 5000, "\x00" * 5000, "\udc80 lone", "\N{OLD PERSIAN SIGN A}" * 5000, "x" * ROOM, ""])
def test_any_message_has_room(message: str) -> None:
    board = Scoreboard()
    logger_to(board).error("%s", message)
    (line,) = last_errors(board)
    assert line["message"].rstrip("…") == message.replace("\udc80", "?")[: len(line["message"].rstrip("…"))]
    assert len(board.errors.of(board.arbiter)[0]) <= ROOM
