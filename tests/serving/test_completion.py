"""Run to completion: which requests are, from several threads at once, and what becomes of one that is cut short."""

import asyncio
import threading
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY

from mpserve.http.accounts import Accounts
from mpserve.http.lane import Lane
from mpserve.metrics import metrics
from mpserve.serving import tally
from mpserve.serving.completion import BRIEF, LARGE, SMALL, Completion, fits
from mpserve.serving.dataplane import Dataplane, Plane
from mpserve.serving.model import Model
from mpserve.serving.tensors import Tensor, TensorModel
from tests.asgi import loaded
from tests.lanes import tallied, whole


class Doubles(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP64", (-1,)),)
    outputs = (Tensor("y", "FP64", (-1,)),)

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def predict(self, x: Any) -> Any:
        self.threads.add(threading.get_ident())
        if x[0] < 0:
            raise ValueError("as asked")
        return x * 2


class Later(Doubles):
    async def predict(self, x: Any) -> Any:
        return x


class Batched(Doubles):
    max_batch_size = 4


class Explaining(Model):
    name = "m"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return payload

    def explain(self, payload: Any, headers: Any = None) -> Any:
        return payload


@pytest.mark.parametrize(
    ("model", "verb", "length", "last", "expected"),
    [
        (Doubles, "predict", 0, 0, True),
        (Doubles, "predict", SMALL, 10 * BRIEF, True),
        (Doubles, "predict", SMALL + 1, BRIEF - 1, True),
        (Doubles, "predict", SMALL + 1, BRIEF, False),
        (Doubles, "predict", LARGE, 0, True),
        (Doubles, "predict", LARGE + 1, 0, False),
        (Doubles, "explain", 0, 0, False),
        (Later, "predict", 0, 0, False),
        (Batched, "predict", 0, 0, False),
        (Explaining, "predict", 0, 0, False),
        (Explaining, "explain", 0, 0, True),
    ],
)
def test_what_is_small_or_brief_and_waits_for_nothing_is_run_to_completion(
    model: type[Model], verb: str, length: int, last: int, expected: bool
) -> None:
    async def main() -> None:
        async with loaded(model()) as core:
            served = core.find("m")
            served.last_infer = last
            assert fits(served, verb, length) is expected
            served.model.ready = False
            assert fits(served, verb, length) is False

    asyncio.run(main())


class Road(Completion[str]):
    """A road that ends as it is told."""

    def __init__(self, dataplane: Dataplane, ends: Any) -> None:
        self.ends = ends
        self.heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        super().__init__(dataplane, dataplane.core.find("m"))

    def at_once(self) -> str | None:
        return threading.current_thread().name if self.ends == "at once" else None

    async def road(self, plane: Plane) -> str:
        if isinstance(self.ends, BaseException):
            raise self.ends
        if self.ends == "waits":
            await asyncio.sleep(0)
        return f"{self.ends} {threading.current_thread().name}"

    def told(self, outcome: str) -> None:
        self.heard.set_result(outcome)

    def failed(self, error: BaseException) -> str:
        return repr(error)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    ("ends", "heard"),
    [
        ("at once", "mpserve-m-0"),
        ("well", "well mpserve-m-0"),
        ("waits", "RuntimeError('a request that was run to completion waited for something')"),
        (ValueError("bad"), "ValueError('bad')"),
        (SystemExit(3), "RuntimeError('SystemExit: 3')"),
        (asyncio.CancelledError(), "RuntimeError('CancelledError: ')"),
    ],
)
def test_a_road_ends_in_the_models_thread_and_is_told_on_the_loop(ends: Any, heard: str) -> None:
    async def main() -> None:
        async with loaded(Doubles()) as core:
            road = Road(Dataplane(core), ends)
            road.submit()
            assert core.row.in_flight == 1
            assert await asyncio.wait_for(road.heard, 10) == heard
            assert core.row.in_flight == 0
            await asyncio.wait_for(core.find("m").held.until_idle(), 10)

    asyncio.run(main())


REQUESTS = 4000
AT_ONCE = 50


@pytest.mark.parametrize("concurrency", [1, 4])
def test_of_many_requests_in_several_threads_each_gets_its_own_answer_and_all_are_counted(concurrency: int) -> None:
    model = Doubles()
    model.name = "many"  # of which no thread of another test can count a late predict
    model.concurrency = concurrency

    def body_of(number: int) -> tuple[str, bytes, Any]:
        """Address, body, and the answer's body or status."""
        kind, x = number % 4, float(number)
        if kind == 0:
            return "/v1/models/many:predict", orjson.dumps({"instances": [x, 1]}), {"predictions": [2 * x, 2.0]}
        if kind == 1:
            return "/v1/models/many:predict", orjson.dumps({"instances": [-x]}), 500
        if kind == 2:
            return "/v1/models/many:predict", orjson.dumps({"instances": ["a"]}), 400
        entry = {"name": "x", "shape": [1], "datatype": "FP64", "data": [x]}
        output = {"name": "y", "shape": [1], "datatype": "FP64", "data": [2 * x]}
        answer = {"model_name": "many", "id": str(number), "outputs": [output]}
        return "/v2/models/many/infer", orjson.dumps({"id": str(number), "inputs": [entry]}), answer

    def observed() -> float:
        metrics().flush()
        return REGISTRY.get_sample_value("request_predict_seconds_count", {"model_name": "many"}) or 0

    async def main() -> None:
        async with loaded(model) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=False))
            loop, before, identities = asyncio.get_running_loop(), observed(), set()
            numbers = iter(range(1, REQUESTS + 1))

            async def client() -> None:
                for number in numbers:
                    path, body, expected = body_of(number)
                    told: asyncio.Future[Any] = loop.create_future()
                    asked = lane.accept(path.encode(), [])
                    assert asked is not None
                    assert lane.begin(
                        asked,
                        body,
                        None,
                        lambda answer, identity, told=told: told.set_result((whole(answer), identity)),
                    )  # type: ignore[misc]
                    answer, identity = await told
                    identities.add(identity)
                    if isinstance(expected, int):
                        assert answer.status == expected
                    else:
                        assert (answer.status, orjson.loads(answer.body)) == (200, expected)

            await asyncio.wait_for(asyncio.gather(*(client() for _ in range(AT_ONCE))), 120)
            served = core.find("many")
            counted = tallied(served, (tally.SUCCESSES, tally.FAILURES, tally.ROWS))
            quarter = REQUESTS // 4
            assert counted == [2 * quarter, 2 * quarter, 3 * quarter]
            assert observed() - before == REQUESTS
            assert (core.row.in_flight, served.held.count) == (0, 0)
            assert len(identities) == REQUESTS
            assert len(model.threads) <= concurrency

    asyncio.run(main())
