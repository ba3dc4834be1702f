"""Requests with priorities: who is next, who gives way, and what a request may ask for."""

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput, Overloaded
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.execution.priority import Levels, levels_of
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from tests.asgi import serving
from tests.asking import ask
from tests.cases import each
from tests.grpc.serving import serving as over_grpc
from tests.serving.held import MANY, WAYS, Held, InBatch, InThread, in_flight

LEVELS = {"priority_levels": 3, "default_priority_level": 2}


def request(rows: list[float], **parameters: object) -> InferRequest:
    """A V2 request with these rows of one number."""
    array = np.array(rows).reshape(-1, 1)
    return InferRequest("m", [InferInput("x", list(array.shape), "FP64", array)], parameters=parameters or None)


async def queued(core: ServerCore, value: float, **parameters: Any) -> asyncio.Task[Any]:
    """The request, once it waits or is refused: both happen as soon as its task runs."""
    task = ask(core, "m", request([value], **parameters))
    for _ in range(5):
        await asyncio.sleep(0)
    return task


def given(model: Held) -> list[list[float]]:
    """The values of each call."""
    return [np.asarray(call).ravel().tolist() for call in model.asked]


@each("kind", WAYS)
async def test_the_more_important_is_next_whatever_runs_the_model(kind: type[Held]) -> None:
    model = kind()
    async with in_flight(model, **LEVELS) as core:
        tasks = [await queued(core, 0)]
        await model.has_begun()
        tasks += [await queued(core, 0) for _ in range(core.find("m").admission.slots - 1)]
        for value, asked in ((3.0, 3), (2.0, None), (1.0, 1), (3.1, 3), (2.1, 0), (1.1, 1), (2.2, 7)):
            tasks.append(await queued(core, value, **({} if asked is None else {"priority": asked})))
        model.go.release(MANY)
        await asyncio.gather(*tasks)
    order = [round(value, 1) for call in given(model) for value in call if value]
    assert order == [1.0, 1.1, 2.0, 2.1, 2.2, 3.0, 3.1]


async def test_requests_as_large_as_a_batch_are_put_in_order_too() -> None:
    model = InThread()
    model.rows_joined = 2
    async with in_flight(model, **LEVELS) as core:
        tasks = []
        for value, asked in ((0.0, 3), (3.0, 3), (3.1, 3), (1.0, 1)):
            tasks.append(ask(core, "m", request([value] * 3, priority=asked)))
            await model.has_begun()
        model.go.release(MANY)
        await asyncio.gather(*tasks)
    assert [call[0] for call in given(model)] == [0.0, 1.0, 3.0, 3.1]


async def test_a_full_queue_sheds_the_least_important_last_one_first() -> None:
    model = InThread()
    async with in_flight(model, **LEVELS, max_queue_size=2) as core:
        first = await queued(core, 0)
        await model.has_begun()
        kept, shed = await queued(core, 1, priority=3), await queued(core, 2, priority=3)
        for same in (3, 3):
            with pytest.raises(Overloaded, match="2 requests wait already"):
                await ask(core, "m", request([9.0], priority=same))
        important = await queued(core, 3, priority=1)
        with pytest.raises(Overloaded, match=r"a more important request has taken its place in the queue\.$"):
            await shed
        late = await queued(core, 4, priority=3)
        gone = await queued(core, 5, priority=1)
        with pytest.raises(Overloaded):
            await late
        with pytest.raises(Overloaded):
            await kept
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        last = await queued(core, 6, priority=3)  # there is room again
        model.go.release(MANY)
        await asyncio.gather(first, important, last)
        assert given(model) == [[0], [3], [6]]


async def test_requests_that_fail_at_once_let_the_others_in() -> None:
    """However many: their ends are no calls within calls."""
    model = InBatch()
    async with in_flight(model, **LEVELS) as core:
        tasks = [await queued(core, 0), await queued(core, 0)]
        await model.has_begun()
        wrong = [ask(core, "m", request([0.0] * 3)) for _ in range(1500)]  # more rows than a batch may have
        await asyncio.sleep(0)
        tasks.append(await queued(core, 1, priority=3))
        model.go.release(MANY)
        await asyncio.gather(*tasks)
        outcomes = await asyncio.gather(*wrong, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {InvalidInput}


@each("asked", ["high", -1, 1.0, True])
async def test_a_priority_that_is_no_level_is_refused(asked: object) -> None:
    model = InThread()
    async with in_flight(model, **LEVELS) as core:
        with pytest.raises(
            InvalidInput, match=rf"^parameter priority is {asked!r}, expected a whole number, 0 or more$"
        ):
            await ask(core, "m", request([1.0], priority=asked))
    assert not model.asked


@each("asked, status", [(1, 200), (0, 200), (9, 200), ("high", 400), (-1, 400)])
async def test_the_parameter_is_read_in_each_format_that_has_parameters(asked: Any, status: int) -> None:
    model = InThread()
    model.go.release(MANY)
    tensor = {"name": "x", "datatype": "FP64", "shape": [1, 1]}
    with_data = {**tensor, "data": [1.0]}
    async with serving(model, **LEVELS) as client:
        for path, body in (
            ("infer", {"inputs": [with_data], "parameters": {"priority": asked}}),
            ("generate", {"x": 1.0, "priority": asked}),
        ):
            answer = await client.post(f"/v2/models/m/{path}", json=body)
            assert answer.status_code == status, (path, answer.text)
            assert status == 200 or f"parameter priority is {asked!r}, expected a whole number" in answer.text
    kind = "string_param" if isinstance(asked, str) else "int64_param"
    typed = {**tensor, "contents": {"fp64_contents": [1.0]}}
    call = pb.ModelInferRequest(model_name="m", inputs=[typed], parameters={"priority": {kind: asked}})
    async with over_grpc(model, **LEVELS) as grpc_client:
        code = await grpc_client("ModelInfer", call).code()
        assert code == (grpc.StatusCode.OK if status == 200 else grpc.StatusCode.INVALID_ARGUMENT)


async def test_without_levels_the_parameter_is_the_model_s_own() -> None:
    model = InThread()
    async with in_flight(model) as core:
        model.go.release(MANY)
        await ask(core, "m", request([1.0], priority="high"))
        assert core.find("m").admission.priority_queue is None


@each("declared, options, levels", [
    ({}, {}, None), ({}, LEVELS, Levels(3, 2)), ({"priority_levels": 0}, LEVELS, None),
    ({"priority_levels": 5, "default_priority_level": 5}, LEVELS, Levels(5, 5)),
    ({"priority_levels": 5}, {}, "default_priority_level is 0, expected a number from 1 to 5"),
    ({"default_priority_level": 4}, LEVELS, "default_priority_level is 4, expected a number from 1 to 3"),
    ({"priority_levels": -1}, {}, "priority_levels is -1, expected a number of 0 or more"),
])  # fmt: skip
def test_levels_are_declared_or_options(declared: dict[str, Any], options: dict[str, Any], levels: Any) -> None:
    model = Model("m")
    vars(model).update(declared)
    if isinstance(levels, str):
        with pytest.raises(ConfigurationError, match=f"^model m: {levels}"):
            levels_of(model, Settings(**options))
    else:
        assert levels_of(model, Settings(**options)) == levels
