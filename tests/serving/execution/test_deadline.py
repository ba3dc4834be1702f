"""The time of one request."""

import asyncio

from mpserve.errors import DeadlineExceeded, MPServeError, ServerNotReady
from mpserve.serving.execution.admission import Deadline

SOON, NEVER = 0.02, 1000.0


class Limited:
    """A request that has so much time."""

    def __init__(self, seconds: float, needed: float = 0.0) -> None:
        self.arrived = self.mark = 0
        self.durations = [0, 0, 0, 0]
        self.begun = False
        self.all: set[Deadline] = set()
        self.ended: asyncio.Future[MPServeError] = asyncio.get_running_loop().create_future()
        self.deadline = Deadline(seconds, needed, self, lambda late: DeadlineExceeded(f"{late}"), self.all)

    def expire(self, error: MPServeError) -> None:
        self.ended.set_result(error)


async def test_a_request_that_is_late_is_ended_and_its_deadline_is_kept_no_more() -> None:
    limited = Limited(SOON)
    assert limited.all == {limited.deadline}
    assert str(await limited.ended) == f"{SOON}"
    assert limited.all == set()
    limited.deadline.close()


async def test_a_request_that_is_done_in_time_is_not_ended() -> None:
    limited, other = Limited(SOON), Limited(2 * SOON)
    limited.deadline.close()
    assert limited.all == set()
    await other.ended
    assert not limited.ended.done()


async def test_a_request_may_be_ended_before_its_time() -> None:
    limited = Limited(NEVER)
    limited.deadline.end(ServerNotReady("stuck"))
    assert str(await limited.ended) == "stuck"


async def test_a_request_that_has_not_begun_when_too_little_time_is_left_is_late_already() -> None:
    assert str(await Limited(NEVER, needed=NEVER - SOON).ended) == f"{NEVER}"


async def test_a_request_that_has_begun_by_then_has_all_its_time() -> None:
    limited, other, last = Limited(NEVER, NEVER - SOON), Limited(3 * SOON), Limited(2 * SOON, SOON)
    limited.begun = last.begun = True
    await last.ended
    await other.ended
    assert not limited.ended.done()
    limited.deadline.close()


async def test_a_request_that_never_had_the_time_that_is_needed_is_tried_all_the_same() -> None:
    limited = Limited(SOON, needed=2 * SOON)
    await asyncio.sleep(0)
    assert not limited.ended.done()
    await limited.ended
