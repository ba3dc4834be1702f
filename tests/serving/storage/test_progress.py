"""A bar on a terminal, and a line of the log every few seconds elsewhere."""

import io
import logging

import pytest

from mpserve.serving.storage import progress
from mpserve.serving.storage.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_is_left_clean(caplog: pytest.LogCaptureFixture) -> None:
    terminal = Terminal()
    with caplog.at_level(logging.INFO):
        shown = Progress("s3://models/iris", terminal)
        shown.update(500, 2_000)
        shown.update(1_500_000_000, None)
        shown.end()
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn[1] == f"s3://models/iris [{'#' * 7}{' ' * 23}] 500 bytes of 2.0 kB (25 %)"
    assert drawn[2].endswith("] 1.5 GB")
    assert drawn[3] == ""
    assert not caplog.records


def test_a_container_logs_a_line_at_times(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    with caplog.at_level(logging.INFO):
        shown = Progress("s3://models/iris", stream)
        shown.update(1, 2)
        monkeypatch.setattr(progress, "EVERY", 0.0)
        shown.update(1_000_000, 4_000_000)
        shown.end()
    assert [record.getMessage() for record in caplog.records] == ["fetching s3://models/iris: 1.0 MB of 4.0 MB (25 %)"]
    assert stream.getvalue() == ""
