"""A part of the tick that fails is logged once, and does not hinder the others."""

import logging

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


def test_a_failing_part_is_logged_once_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    first, second = Part(), Part()
    upkeep = Upkeep({"the first": first, "the second": second}, lambda: now)

    def run(seconds: float, is_broken: bool) -> list[str]:
        """What is logged in so many seconds of ticks."""
        nonlocal now
        first.is_broken = is_broken
        caplog.clear()
        for _ in range(round(10 * seconds)):
            now += 0.1
            upkeep.run()
        assert all(record.exc_info for record in caplog.records)
        return [record.getMessage().partition(" failed.")[0] for record in caplog.records]

    with caplog.at_level(logging.ERROR):
        assert run(5, is_broken=False) == []
        assert run(3 * QUIET, is_broken=True) == ["the first"]
        assert run(QUIET / 2, is_broken=False) == []
        assert run(1, is_broken=True) == []  # it works now and then
        assert run(2 * QUIET, is_broken=False) == []
        assert run(1, is_broken=True) == ["the first"]
    assert first.runs == second.runs


def test_parts_that_fail_are_told_apart(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"the first": Part(), "the second": Part()}
    for part in parts.values():
        part.is_broken = True
    upkeep = Upkeep(parts)
    for _ in range(3):
        upkeep.run()
    assert [record.args for record in caplog.records] == [("the first",), ("the second",)]
