"""How the time of an end is divided: by a clock that stands still, and with real coroutines for ``stop()``."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpserve.prefork.worker import grace
from mpserve.prefork.worker.grace import HURRY, MARGIN, STOPPING, Grace
from tests.cases import each

TIMEOUT = 30.0
WHOLE = TIMEOUT - MARGIN - STOPPING


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@each("timeout, steps, left", [
    (TIMEOUT, [], float("inf")), (TIMEOUT, ["begin"], WHOLE), (TIMEOUT, ["begin", 10], WHOLE - 10),
    (TIMEOUT, ["begin", 10, "begin"], WHOLE - 10), (TIMEOUT, ["begin", TIMEOUT], WHOLE - TIMEOUT),
    (TIMEOUT, ["hurry"], HURRY - STOPPING), (TIMEOUT, ["begin", 10, "hurry"], HURRY - STOPPING),
    (TIMEOUT, ["hurry", "begin"], HURRY - STOPPING),
    (TIMEOUT, ["begin", TIMEOUT - MARGIN, "hurry"], -STOPPING),  # a hurry that comes too late
    (MARGIN / 2, ["begin"], -STOPPING),  # shorter than the margin
])  # fmt: skip
def test_what_is_left_for_requests(timeout: float, steps: list[str | float], left: float) -> None:
    clock = Clock()
    end = Grace(timeout, clock)
    for step in steps:
        if isinstance(step, str):
            getattr(end, step)()
        else:
            clock.now += step
    assert end.left_for_requests == left


async def fails() -> None:
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(("work", "logged"), [
    (lambda: asyncio.sleep(0), []), (fails, ["stop() failed"]),
    (lambda: asyncio.sleep(60), ["stop() did not finish in time; ending without it"]),
])  # fmt: skip
async def test_a_stop_is_given_its_time_even_where_none_is_left(
    work: Callable[[], Awaitable[None]],
    logged: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grace, "LOOK", 0.001)
    clock = Clock()

    async def pass_time() -> None:
        while True:
            await asyncio.sleep(0.001)
            clock.now += STOPPING / 4

    passing = asyncio.ensure_future(pass_time())
    await Grace(0, clock).stop(work)
    passing.cancel()
    assert [record.getMessage() for record in caplog.records if record.name == grace.__name__] == logged
