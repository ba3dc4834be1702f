"""A request through each scheduler: how far it has come, and how it ends when it is cancelled or late at any moment."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from mpserve.errors import DeadlineExceeded, MPServeError, ServerNotReady
from mpserve.protocol.codec import Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest, begin
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from tests.asking import Untouched
from tests.cases import each, until
from tests.serving.held import MANY, WAYS, AsyncBefore, Held, counts, in_flight

BATCH = {"instances": [[1.0], [2.0]]}
"""As many rows as a batch may have, so that no two requests are joined."""
QUEUED = [kind for kind in WAYS if kind is not AsyncBefore]  # which begins on the event loop, before its queue


class Streamed(Held, Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        yield "a"
        yield self.held("b")


class AsyncStreamed(Held, Model):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        yield "a"
        yield await self.held_async("b")


class Kept:
    """A reply that keeps how it was called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.called = asyncio.Event()

    def _keep(self, request: InferenceRequest, outcome: Encoded | ModelStream | MPServeError) -> None:
        self.calls.append(outcome)
        self.called.set()

    finish = stream = fail = _keep


def ask(core: ServerCore, within: float = math.inf) -> tuple[InferenceRequest, Kept]:
    reply = Kept()
    return begin(core, RequestHead("m", None, "predict", Untouched(BATCH), {}), b"", reply, within), reply


@each("kind", QUEUED)
async def test_a_request_is_queued_then_runs_and_is_done(kind: type[Held]) -> None:
    model = kind()
    async with in_flight(model) as core:
        (first, reply), (second, _) = ask(core), ask(core)
        assert (first.begun, first.over) == (False, False)
        await until(model.begun.is_set)
        assert (first.begun, first.over, second.begun, second.over) == (True, False, False, False)
        model.go.release(MANY)
        await reply.called.wait()
        assert first.over
        await core.find("m").in_flight.until_idle()
        assert (second.over and second.parts is None, counts(core)) == (True, (2, 0))


def cancel(request: InferenceRequest) -> None:
    request.cancel()


def expire(request: InferenceRequest) -> None:
    request.expire(DeadlineExceeded("late"))


@each("kind", QUEUED)
@each("end", [cancel, expire])
async def test_a_request_that_is_ended_in_the_queue_never_runs(kind: type[Held], end: Any) -> None:
    model = kind()
    async with in_flight(model) as core:
        (_, reply), (second, ended), (_, last) = ask(core), ask(core), ask(core)
        await until(model.begun.is_set)
        end(second)
        end(second)
        assert (second.over and second.parts is None, core.find("m").in_flight.count) == (True, 2)
        assert [str(fault) for fault in ended.calls] == ([] if end is cancel else ["late"])
        model.go.release(MANY)
        await asyncio.gather(reply.called.wait(), last.called.wait())
        assert counts(core) == (2, 1)
        assert not second.begun


def wait(request: InferenceRequest) -> None: ...


@each("kind", WAYS)
@each("end, within, told", [
    (cancel, math.inf, []), (expire, math.inf, ["late"]), (wait, 0.02, ["Model m did not answer within 0.02 s."]),
])  # fmt: skip
async def test_a_request_that_is_ended_while_it_runs_is_counted_once_and_its_answer_dropped(
    kind: type[Held], end: Callable[[InferenceRequest], None], within: float, told: list[str]
) -> None:
    model = kind()
    async with in_flight(model) as core:
        request, reply = ask(core, within)
        await until(model.begun.is_set)
        end(request)
        end(request)
        await until(lambda: request.over)
        model.go.release(MANY)
        await core.find("m").in_flight.until_idle()
        _, following = ask(core)
        await following.called.wait()
        assert isinstance(following.calls[0], Encoded)
        assert ([str(fault) for fault in reply.calls], counts(core)) == (told, (1, 1))


@each("kind", [Streamed, AsyncStreamed])
@each("reads, is_cancelled", [(True, False), (True, True), (False, True)])
async def test_a_request_that_is_answered_in_parts_streams_until_the_last_or_until_it_is_cancelled(
    kind: type[Held], reads: bool, is_cancelled: bool
) -> None:
    model = kind()
    async with in_flight(model) as core:
        request, reply = ask(core)
        await reply.called.wait()
        [parts] = reply.calls
        assert await anext(parts)
        assert (request.parts is None, counts(core), core.row.in_flight) == (False, (0, 0), 1)
        reading = [asyncio.ensure_future(anext(parts))] if reads else []
        await until(lambda: model.begun.is_set() or not reads)
        for _ in range(2 * is_cancelled):
            request.cancel()
        model.go.release(MANY)
        await asyncio.gather(*reading, return_exceptions=True)
        assert is_cancelled or [part async for part in parts] == []
        await core.find("m").in_flight.until_idle()
        assert request.over
        assert request.parts is None
        assert (counts(core), len(reply.calls)) == ((0, 1) if is_cancelled else (1, 0), 1)


async def test_a_request_that_is_cancelled_while_its_first_part_is_made_gives_none() -> None:
    class Parting(AsyncStreamed):
        request: InferenceRequest

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            self.request.cancel()
            yield "a"

    model = Parting()
    async with in_flight(model) as core:
        model.request, reply = ask(core)
        await reply.called.wait()
        assert [type(call) for call in reply.calls] == [ServerNotReady]
