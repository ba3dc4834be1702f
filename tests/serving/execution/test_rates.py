"""Limits of requests in flight and a second, over all workers together."""

import asyncio
import math
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, TooManyRequests
from mpserve.serving.execution import rates
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.rates import Limit, Quota, Rates
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import Scoreboard, State
from mpserve.state.usage import PLACES
from mpserve.telemetry.metrics import metrics
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each, until
from tests.serving.held import MANY, Held, in_flight

SECOND = 1_000_000_000


class Clock:
    """The time, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 10**15
        monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic_ns=lambda: self.now))


def workers(board: Scoreboard, limit: Limit, number: int = 2) -> list[Quota]:
    """The quota of one caller, as each worker sees it."""
    for slot in range(number):
        board.row(slot).state, board.row(slot).pid = State.READY, os.getpid()
    return [Quota("caller", "alice", "the caller alice", limit, board, board.row(slot)) for slot in range(number)]


def refusal_of(quota: Quota) -> TooManyRequests | None:
    try:
        quota.check()
    except TooManyRequests as refusal:
        return refusal
    return None


@each("rate", [0.25, 1.0, 2.5, 100.0])
def test_a_rate_holds_over_all_workers_and_a_refused_client_is_told_when_to_come(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, seconds, asked = Clock(monkeypatch), 20, 0
    quotas = workers(Scoreboard(2), Limit(math.inf, rate))
    admitted, waits = 0, set()
    while asked < seconds * rate * 10:
        refusal = refusal_of(quotas[asked % 2])
        if refusal is None:
            quotas[asked % 2].take()
            admitted += 1
        else:
            waits.add(refusal.retry_after)
            assert refusal.reason == "caller_rate"
            assert str(refusal) == f"the caller alice has reached its limit of requests a second: {rate:g}"
        asked += 1
        clock.now += int(SECOND / rate / 10)
    at_once = max(rate, 1)
    assert seconds * rate <= admitted <= seconds * rate + at_once
    assert waits == set(range(1, math.ceil(1 / rate) + 1))
    clock.now += max(waits) * SECOND
    quotas[0].check()


def test_requests_in_flight_are_counted_over_all_living_workers() -> None:
    board = Scoreboard(3)
    one, other, third = workers(board, Limit(2, math.inf), 3)
    places = []
    for quota in (one, other):
        quota.check()
        places.append(quota.take())
    for quota in (one, other, third):
        with pytest.raises(TooManyRequests, match=r"^the caller alice has reached its limit of requests in flight: 2$"):
            quota.check()
    own = Rates(Settings(), board, board.row(0))  # a successor in slot 0 has none
    third.check()
    places[0] = one.take()
    own.leave(places[:1])
    third.check()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    places.append(third.take())
    with pytest.raises(TooManyRequests):
        one.check()
    board.row(1).pid = gone.pid
    one.check()


def test_more_subjects_than_places_take_those_that_were_not_used_for_longest() -> None:
    board = Scoreboard(1)
    row = board.row(0)
    first = Quota("caller", "first", "first", Limit(1, math.inf), board, row)
    first.take()
    others = [Quota("caller", f"{number}", "", Limit(1, math.inf), board, row) for number in range(PLACES)]
    first.check()  # its place is another's by now, so it gets a new one
    assert len({first._at, *(quota._at for quota in others)}) == PLACES


@each("declared, words", [
    ({"max_in_flight": -1}, "max_in_flight is -1"), ({"max_rate": math.inf}, "max_rate is inf"),
    ({"max_rate": "9"}, "max_rate is '9'"),
])  # fmt: skip
def test_an_impossible_limit_of_a_model_is_refused(declared: dict[str, Any], words: str) -> None:
    model, board = Model("m"), Scoreboard(1)
    vars(model).update(declared)
    with pytest.raises(ConfigurationError, match=f"^model m: {words}, expected"):
        ModelInstance(model, lambda: None, False, Settings(), Rates(Settings(), board, board.row(0)))


@each("option", ["max_in_flight_per_caller", "max_rate_per_caller"])
def test_a_limit_of_callers_needs_callers(option: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{option}: got 3.* without api_keys_file and authenticate"):
        Settings(**{option: 3})


class Streaming(Held, Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        yield b"a"
        yield self.held(b"b")


class Whole(Held, Model):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return self.held(payload)


async def reason(core: ServerCore) -> str | None:
    """Why one more request is refused; None: it is not."""
    try:
        await ask(core, "m", "one more")
    except TooManyRequests as refusal:
        return refusal.reason
    return None


@each("end", ["answer", "cancel"])
async def test_a_request_gives_its_place_back_however_it_ends(end: str) -> None:
    model = Whole()
    model.max_in_flight = 1
    async with in_flight(model) as core:
        before = metrics()._refused["m", "1", "model_in_flight"]
        first = ask(core, "m", "first")
        await model.has_begun()
        assert await reason(core) == "model_in_flight"
        assert metrics()._refused["m", "1", "model_in_flight"] == before + 1
        if end == "cancel":
            first.cancel()
            await until(lambda: core.find("m").in_flight.count == 0)
        model.go.release(MANY)
        await asyncio.gather(first, return_exceptions=True)
        assert await ask(core, "m", "second") == "second"


async def test_an_answer_in_parts_is_in_flight_to_its_end() -> None:
    model = Streaming()
    async with loaded(model, max_in_flight=1) as core:
        parts = await ask(core, "m", "first")
        assert await anext(parts) == b"a"
        assert await reason(core) == "model_in_flight"
        model.go.release(MANY)
        assert [part async for part in parts] == [b"b"]
        await until(lambda: core.find("m").in_flight.count == 0)
        assert await reason(core) is None
