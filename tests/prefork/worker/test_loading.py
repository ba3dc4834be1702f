"""The first stage of a worker: the load, its deadline, and the pause after loads that have failed."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from mpserve.prefork.listener.listeners import Listeners
from mpserve.prefork.worker import loading
from mpserve.prefork.worker.loading import BACK_OFF_LIMIT, LoadFailed, back_off, load
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.host import own_directory
from mpserve.state.scoreboard import Scoreboard
from tests.asgi import core_of


@pytest.mark.parametrize(
    ("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, BACK_OFF_LIMIT), (2**40, BACK_OFF_LIMIT)]
)
def test_the_pause_doubles_with_each_failure_up_to_a_minute(failures: int, seconds: float) -> None:
    assert back_off(failures) == seconds


class Loading(Model):
    """Loads as it is told."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__("m")
        self.work = work

    def load(self) -> None:
        self.work()


def attached(model: Model, failures: int = 0, ever_ready: bool = False, timeout: float = 60) -> ServerCore:
    core = core_of(model, load_timeout=timeout)
    board = Scoreboard(1)
    if ever_ready:
        board.mark_ever_ready()
    board.row(0).attempts = failures
    core.attach(board, board.row(0), "cpu", lambda: None, own_directory())
    return core


async def run(core: ServerCore, ending: asyncio.Event) -> bool:
    return await load(core, Listeners([], lambda listener: pytest.fail("there is none"), 0), ending)


def fail() -> None:
    raise RuntimeError("no weights")


def wait() -> None:
    threading.Event().wait(1)


@pytest.mark.parametrize(
    ("failures", "ever_ready", "pauses"), [(0, False, []), (3, False, []), (0, True, []), (3, True, [4.0])]
)
async def test_a_load_pauses_first_where_others_serve_and_the_last_ones_failed(
    failures: int, ever_ready: bool, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def no_pause(failures: int) -> float:
        asked.append(back_off(failures))
        return 0

    monkeypatch.setattr(loading, "back_off", no_pause)
    core = attached(Loading(lambda: None), failures, ever_ready)
    loaded = await run(core, asyncio.Event())
    await core.stop()
    assert loaded
    assert (asked, core.row.attempts) == (pauses, failures + 1)  # until the worker is ready


@pytest.mark.parametrize(("work", "timeout", "reason"), [
    (fail, 60, "RuntimeError: no weights"),
    (wait, 0.1, r"load\(\) of model m did not finish within the 0.1 s of --load_timeout; it is at .* in wait"),
])  # fmt: skip
async def test_a_load_that_fails_or_is_late_is_told_and_counted(
    work: Callable[[], object], timeout: float, reason: str
) -> None:
    core = attached(Loading(work), timeout=timeout)
    with pytest.raises(LoadFailed, match=reason):
        await run(core, asyncio.Event())
    await core.stop()
    assert core.row.attempts == 1


async def test_a_load_that_the_end_interrupts_is_no_failure() -> None:
    core = attached(Loading(wait), failures=2)
    ending = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, ending.set)
    assert await run(core, ending) is False
    await core.stop()
    assert core.row.attempts == 2
