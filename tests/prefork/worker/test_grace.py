"""How the time of an end is divided: by a clock that stands still, and with real coroutines for ``stop()``."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mpserve.prefork.worker import grace
from mpserve.prefork.worker.grace import HURRY, MARGIN, STOPPING, Grace

TIMEOUT = 30.0
WHOLE = TIMEOUT - MARGIN - STOPPING


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("steps", "left"), [
    pytest.param([], float("inf"), id="before the end"), pytest.param(["begin"], WHOLE, id="begun"),
    pytest.param(["begin", 10], WHOLE - 10, id="ten seconds later"),
    pytest.param(["begin", 10, "begin"], WHOLE - 10, id="begun again"),
    pytest.param(["begin", TIMEOUT], WHOLE - TIMEOUT, id="late"),
    pytest.param(["hurry"], HURRY - STOPPING, id="in a hurry"),
    pytest.param(["begin", 10, "hurry"], HURRY - STOPPING, id="in a hurry later"),
    pytest.param(["hurry", "begin"], HURRY - STOPPING, id="begun in a hurry"),
    pytest.param(["begin", TIMEOUT - MARGIN, "hurry"], -STOPPING, id="in a hurry that comes too late"),
])  # fmt: skip
def test_what_is_left_for_requests(steps: list[str | int], left: float) -> None:
    clock = Clock()
    end = Grace(TIMEOUT, clock)
    for step in steps:
        if isinstance(step, str):
            getattr(end, step)()
        else:
            clock.now += step
    assert end.left_for_requests == left


def test_a_timeout_shorter_than_the_margin_leaves_nothing_for_requests() -> None:
    end = Grace(MARGIN / 2, Clock())
    end.begin()
    assert end.left_for_requests == -STOPPING


async def fails() -> None:
    raise RuntimeError("the disk is gone")


async def hangs() -> None:
    await asyncio.Event().wait()


async def works() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize(("work", "logged"), [
    (works, []), (fails, ["stop() failed"]), (hangs, ["stop() did not finish in time; ending without it"]),
])  # fmt: skip
async def test_what_becomes_of_a_stop(
    work: Callable[[], Awaitable[None]],
    logged: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is given ``STOPPING`` even where no time is left."""
    monkeypatch.setattr(grace, "LOOK", 0.001)
    clock = Clock()
    end = Grace(0, clock)

    async def pass_time() -> None:
        while True:
            await asyncio.sleep(0.001)
            clock.now += STOPPING / 4

    passing = asyncio.ensure_future(pass_time())
    await end.stop(work)
    passing.cancel()
    assert [record.getMessage() for record in caplog.records if record.name == grace.__name__] == logged
