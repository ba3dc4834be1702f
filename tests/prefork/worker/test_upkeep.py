"""A part of the tick that fails is logged once, and does not hinder the others."""

import pytest

from mpserve.prefork.worker.upkeep import QUIET, Upkeep


class Part:
    def __init__(self) -> None:
        self.runs = 0
        self.is_broken = False

    def __call__(self) -> None:
        self.runs += 1
        if self.is_broken:
            raise OSError("no space left")


def test_a_failing_part_is_logged_once_until_it_works_again_and_each_for_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    first, second = Part(), Part()
    upkeep = Upkeep({"the first": first, "the second": second}, lambda: now)

    def logged(seconds: float, *broken: Part) -> list[object]:
        """Whose failures are logged in so many seconds of ticks."""
        nonlocal now
        first.is_broken, second.is_broken = first in broken, second in broken
        caplog.clear()
        for _ in range(round(10 * seconds)):
            now += 0.1
            upkeep.run()
        assert all(record.exc_info for record in caplog.records)
        return [record.args for record in caplog.records]

    assert logged(5) == []
    assert logged(3 * QUIET, first) == [("the first",)]
    assert logged(QUIET / 2) == []
    assert logged(1, first, second) == [("the second",)]  # the first works now and then
    assert logged(2 * QUIET) == []
    assert logged(1, first) == [("the first",)]
    assert first.runs == second.runs
