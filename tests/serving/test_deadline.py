"""The time of one request."""

import asyncio

import pytest
from mpserve.serving.tally import QUEUE, Stopwatch

from mpserve.errors import DeadlineExceeded, MPServeError, ServerNotReady
from mpserve.serving.deadline import Deadline, Ending

SOON, NEVER = 0.02, 1000.0


def late(seconds: float) -> MPServeError:
    return DeadlineExceeded(f"{seconds}")


class Limited:
    """A request that has so much time."""

    def __init__(self, seconds: float, needed: float = 0.0) -> None:
        self.watch = Stopwatch()
        self.all: set[Deadline] = set()
        self.given_up: asyncio.Future[MPServeError] = asyncio.get_running_loop().create_future()
        self.deadline = Deadline(seconds, needed, self.watch, late, self.given_up.set_result, self.all)


def test_who_is_late_is_given_up_and_kept_no_more() -> None:
    async def main() -> None:
        limited = Limited(SOON)
        assert limited.all == {limited.deadline}
        assert str(await limited.given_up) == f"{SOON}"
        assert limited.all == set()
        limited.deadline.close()

    asyncio.run(main())


def test_who_is_done_in_time_is_not() -> None:
    async def main() -> None:
        limited, other = Limited(SOON), Limited(2 * SOON)
        limited.deadline.close()
        assert limited.all == set()
        await other.given_up
        assert not limited.given_up.done()

    asyncio.run(main())


def test_one_may_be_given_up_before_its_time() -> None:
    async def main() -> None:
        limited = Limited(NEVER)
        limited.deadline.end(ServerNotReady("stuck"))
        assert str(await limited.given_up) == "stuck"

    asyncio.run(main())


def test_what_has_not_begun_when_too_little_time_is_left_is_late_already() -> None:
    async def main() -> None:
        assert str(await Limited(NEVER, needed=NEVER - SOON).given_up) == f"{NEVER}"

    asyncio.run(main())


def test_what_has_begun_by_then_has_all_its_time() -> None:
    async def main() -> None:
        limited, other, last = Limited(NEVER, NEVER - SOON), Limited(3 * SOON), Limited(2 * SOON, SOON)
        limited.watch.spent[QUEUE] = last.watch.spent[QUEUE] = 1
        await last.given_up
        await other.given_up
        assert not limited.given_up.done()
        limited.deadline.close()

    asyncio.run(main())


def test_what_never_had_the_time_that_is_needed_is_tried_all_the_same() -> None:
    async def main() -> None:
        limited = Limited(SOON, needed=2 * SOON)
        await asyncio.sleep(0)
        assert not limited.given_up.done()
        await limited.given_up

    asyncio.run(main())


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def ended() -> None:
    with Ending() as ending:
        asyncio.get_running_loop().call_soon(ending.end, ServerNotReady("stuck"))
        await for_ever()


def test_a_task_is_ended_with_the_error() -> None:
    async def main() -> None:
        with pytest.raises(ServerNotReady, match="stuck"):
            await ended()
        await asyncio.sleep(0)  # and can go on

    asyncio.run(main())


def test_a_task_that_is_cancelled_by_another_is_cancelled() -> None:
    async def main() -> None:
        with Ending():
            await for_ever()

    async def cancel() -> None:
        task = asyncio.create_task(main())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())


def test_a_task_that_holds_on_to_its_result_keeps_it_and_can_go_on_waiting() -> None:
    async def main() -> str:
        with Ending() as ending:
            asyncio.get_running_loop().call_soon(ending.end, ServerNotReady("stuck"))
            try:
                await for_ever()
            except asyncio.CancelledError:
                result = "kept"
        await asyncio.sleep(0)
        return result

    assert asyncio.run(main()) == "kept"
