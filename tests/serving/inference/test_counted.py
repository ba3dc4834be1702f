"""Each inference request is counted once, by its model, its version and what became of it; a client's text is no label."""

import asyncio
import contextlib
from collections.abc import Iterator
from itertools import count
from typing import Any

import prometheus_client
import pytest
from starlette.exceptions import HTTPException

from mpserve.errors import InvalidInput, MPServeError, Overloaded, PayloadTooLarge
from mpserve.serving.models.model import Model
from mpserve.telemetry.metrics import metrics
from tests.asgi import loaded
from tests.asking import Asker, ask
from tests.cases import each

NAMES = map("counted{}".format, count())  # a name for each test, since all tests of a process share the metrics


def counted(name: str) -> dict[tuple[str, str], float]:
    """The requests to a model that were counted, by version and status; but for those that are 0."""
    metrics().flush()
    samples = [sample for family in prometheus_client.REGISTRY.collect() for sample in family.samples]
    return {
        (sample.labels["model_version"], sample.labels["status"]): sample.value
        for sample in samples
        if sample.name == "mpserve_model_requests_total" and sample.labels["model_name"] == name and sample.value
    }


class Raises(Model):
    version = "7"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        if isinstance(error := payload["instances"][0], BaseException):
            raise error
        return {"predictions": [1]}


def model() -> Raises:
    raises = Raises(next(NAMES))
    raises.version = "7"
    return raises


@each("error, status", [
    (None, "ok"), (ValueError("bad"), "model_failed"), (KeyboardInterrupt(), "model_failed"),
    (InvalidInput("no"), "invalid_input"), (PayloadTooLarge("large"), "too_large"),
    (NotImplementedError("other"), "not_supported"), (Overloaded("full", 1), "overloaded"),
    (HTTPException(418), "invalid_input"), (HTTPException(503), "model_failed"),
])  # fmt: skip
async def test_a_request_is_counted_by_the_fault(error: BaseException | None, status: str) -> None:
    async with loaded(raises := model()) as core:
        for _ in range(2):
            with contextlib.suppress(MPServeError):
                await ask(core, raises.name, {"instances": [error]})
        await asyncio.sleep(0)
        assert counted(raises.name) == {("7", status): 2}


async def test_a_request_to_a_model_that_is_not_there_makes_no_series() -> None:
    async with loaded(raises := model()) as core:
        with pytest.raises(MPServeError):
            await Asker(core).run("predict", other := next(NAMES), None, {"instances": [0]}, {})
        with pytest.raises(MPServeError):
            await Asker(core).run("predict", raises.name, "such a version", {"instances": [0]}, {})
        raises.ready = False
        with pytest.raises(MPServeError):
            await ask(core, raises.name, {"instances": [0]})
        assert counted(other) == {}
        assert counted(raises.name) == {("", "not_found"): 1, ("7", "not_ready"): 1}


class Parts(Model):
    def predict(self, payload: Any, headers: Any = None) -> Iterator[Any]:
        yield {"predictions": [1]}
        if payload["instances"] == ["fail"]:
            raise ValueError("as it was asked")
        yield {"predictions": [2]}


@each("instance, read, status", [("go", 2, "ok"), ("fail", 2, "model_failed"), ("go", 1, "cancelled")])
async def test_an_answer_in_parts_is_counted_at_its_end(instance: str, read: int, status: str) -> None:
    async with loaded(parts := Parts(next(NAMES))) as core:
        stream = await ask(core, parts.name, {"instances": [instance]})
        with contextlib.suppress(MPServeError):
            for _ in range(read):
                await anext(stream)
            if status == "ok":
                with contextlib.suppress(StopAsyncIteration):
                    await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        assert counted(parts.name) == {("1", status): 1}


class Waits(Model):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(60)


async def test_a_request_whose_client_goes_or_whose_time_is_up_is_counted_once() -> None:
    async with loaded(waits := Waits(next(NAMES))) as core:
        going = ask(core, waits.name, {"instances": []})
        await asyncio.sleep(0.05)
        assert core.find(waits.name).in_flight.count == 1
        going.cancel()
        with pytest.raises(MPServeError):
            await ask(core, waits.name, {"instances": []}, within=0.05)
        await asyncio.gather(going, return_exceptions=True)
        assert counted(waits.name) == {("1", "cancelled"): 1, ("1", "timed_out"): 1}
