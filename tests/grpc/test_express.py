"""Plain requests to tensor models go a shorter way than others, and nobody can tell but by their cost.

A parameter that means nothing makes a request one for the ordinary way.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from mpserve import InvalidInput, Model, Tensor, TensorModel
from mpserve.grpc.express import read
from mpserve.logging import model as model_in_log
from mpserve.logging import request_id
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.asgi import loaded
from tests.grpc.models import Double, Echo, Halves
from tests.grpc.serving import Client, infer, refusal, run, serving

Function = Callable[..., Any]
Y = Tensor("y", "FP32", [-1])


class Does(TensorModel):
    """Answers as the function that it is made with."""

    name = "does"

    def __init__(self, function: Function, **declared: Any) -> None:
        super().__init__()
        self.function = function
        self.logged_as: list[tuple[str, str]] = []
        for name, value in declared.items():
            setattr(self, name, value)

    def predict(self, *arrays: Any) -> Any:
        self.logged_as.append((model_in_log.get(), request_id.get()))
        return self.function(*arrays)


class Awaits(Does):
    name = "does"

    async def predict(self, *arrays: Any) -> Any:
        await asyncio.sleep(0)
        return super().predict(*arrays)


def raising(error: BaseException) -> Function:
    def function(*arrays: Any) -> Any:
        raise error

    return function


def parts(x: Any) -> Iterator[Any]:
    yield x


def typed(*values: float, **fields: Any) -> pb.ModelInferRequest:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)], "contents": {"fp32_contents": values}}
    return infer("does", **{"inputs": [tensor]} | fields)


def raw(*values: float, **fields: Any) -> pb.ModelInferRequest:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(values)]}
    contents = [np.array(values, np.float32).tobytes()]
    return infer("does", **{"inputs": [tensor], "raw_input_contents": contents} | fields)


DECLARED = {"inputs": [Tensor("x", "FP32", [-1])], "outputs": [Y]}
BATCHES = DECLARED | {"max_batch_size": 4}
TWO = DECLARED | {"outputs": [Y, Tensor("z", "INT64", [-1])]}


def both(x: Any) -> dict[str, Any]:
    return {"y": x, "z": np.arange(3)}


FUNCTIONS: dict[str, tuple[Function, dict[str, Any]]] = {
    "an array": (lambda x: x * 2, {}),
    "as declared": (lambda x: x * 2, DECLARED),
    "another datatype than declared": (lambda x: x.astype(np.float64), DECLARED),
    "another shape than declared": (lambda x: x[None], DECLARED),
    "a dict": (both, {}),
    "a dict as declared": (both, TWO),
    "a dict in another order": (lambda x: {"z": np.arange(3), "y": x}, TWO),
    "a dict of something else": (lambda x: {"y": x, "w": x}, TWO),
    "a tuple": (lambda x: (x, x > 0, x.astype(np.float16)), {}),
    "a tuple as declared": (lambda x: (x, np.arange(3)), TWO),
    "a tuple of too many": (lambda x: (x, x, x), TWO),
    "a list": (lambda x: [x, np.arange(3)], TWO),
    "half floats": (lambda x: x.astype(np.float16), {}),
    "text": (lambda x: np.array(["a", "ü"]), {}),
    "text and numbers": (lambda x: {"y": np.array([b"a"], dtype=object), "z": x}, {}),
    "no number": (lambda x: x * np.float32("nan"), DECLARED),
    "a number": (lambda x: 5, {}),
    "nothing": (lambda x: {}, {}),
    "no tensor": (lambda x: object(), {}),
    "complex numbers": (lambda x: x * 1j, {}),
    "a failure": (raising(RuntimeError("boom")), DECLARED),
    "a refusal": (raising(InvalidInput("expected a cat")), {}),
    "what is missing": (raising(NotImplementedError("no such kernel")), {}),
    "an exit": (raising(SystemExit(3)), {}),
    "a write into what came": (lambda x: x.fill(1), {}),
}
ALONE = {"in parts": (parts, {}), "in parts, as declared": (parts, DECLARED)}
BATCHED = {
    "a batch": (lambda x: x * 2, BATCHES),
    "a batch that fails": (raising(RuntimeError("boom")), BATCHES),
    "a batch of other rows": (lambda x: x[1:], BATCHES),
}
MODELS = [
    *(
        (f"{name}{', async' if kind is Awaits else ''}", kind, *how)
        for kind in (Does, Awaits)
        for name, how in (FUNCTIONS | ALONE | BATCHED).items()
    ),
    ("one at a time, async", Awaits, lambda x: x * 2, DECLARED | {"concurrency": 1}),
    ("several at a time", Does, lambda x: x * 2, DECLARED | {"concurrency": 2}),
]
REQUESTS = {"typed": typed(1, 2, id="7"), "raw": raw(1, 2)}


def ordinary(request: pb.ModelInferRequest) -> pb.ModelInferRequest:
    """The same request, but for what keeps it from being plain."""
    changed = pb.ModelInferRequest()
    changed.CopyFrom(request)
    changed.parameters["way"].string_param = "ordinary"
    return changed


async def told(client: Client, request: pb.ModelInferRequest) -> Any:
    """All that a client is told of its request."""
    call = client("ModelInfer", request, (("x-request-id", "mine"),))
    code = await call.code()
    response = await call if code is grpc.StatusCode.OK else None
    return code, await call.details(), list(await call.trailing_metadata()), response


async def outcomes(model: Model, request: pb.ModelInferRequest, caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What comes of a request by either way: what is told, logged and counted."""
    found = []
    async with serving(model) as client:
        for each in (request, ordinary(request)):
            caplog.clear()
            answer = await told(client, each)
            logged = [(record.getMessage(), bool(record.exc_info)) for record in caplog.records]
            found.append((answer, logged))
        [stats] = (await client("ModelStatistics", name=model.name)).model_stats
    counts = stats.inference_stats
    assert (stats.inference_count, counts.success.count, counts.fail.count) in ((2, 2, 0), (4, 2, 0), (0, 0, 2))
    return found


async def is_plain(model: Model, request: pb.ModelInferRequest) -> bool:
    async with loaded(model) as core:
        return read(core, request.SerializeToString()) is not None


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize(("name", "kind", "function", "declared"), MODELS, ids=[case[0] for case in MODELS])
def test_whatever_the_model_does_both_ways_tell_the_same(
    name: str,
    kind: type[Does],
    function: Function,
    declared: dict[str, Any],
    request_: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = kind(function, **declared)
    assert run(is_plain(model, request_))
    assert not run(is_plain(model, ordinary(request_)))
    with caplog.at_level(logging.WARNING, "mpserve"):
        short, long = run(outcomes(kind(function, **declared), request_, caplog))
    assert short == long


SHORT = {
    "plain": typed(1, 2),
    "raw": raw(1, 2),
    "an id": raw(1, 2, id="ü"),
    "no rows": typed(inputs=[{"name": "x", "datatype": "FP32", "shape": [0], "contents": {}}]),
    "the outputs that are declared": typed(1, 2, outputs=[{"name": "y"}]),
}
LONG = {
    "another model": infer("nope"),
    "a version": typed(1, 2, model_version="1"),
    "a version that is not there": typed(1, 2, model_version="2"),
    "a parameter": typed(1, 2, parameters={"p": {"int64_param": 1}}),
    "an output that is not there": typed(1, 2, outputs=[{"name": "w"}]),
    "an output by its classes": typed(
        1, 2, outputs=[{"name": "y", "parameters": {"classification": {"int64_param": 1}}}]
    ),
    "another name": typed(inputs=[{"name": "w", "datatype": "FP32", "shape": [0]}]),
    "another datatype": typed(
        inputs=[{"name": "x", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [1]}}]
    ),
    "another shape": typed(
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1]}}]
    ),
    "no input": typed(inputs=[]),
}


@pytest.mark.parametrize(
    ("request_", "short"),
    [*((each, True) for each in SHORT.values()), *((each, False) for each in LONG.values())],
    ids=[*SHORT, *LONG],
)
def test_whatever_is_asked_both_ways_tell_the_same(request_: Any, short: bool) -> None:
    async def test() -> None:
        assert await is_plain(Does(lambda x: x * 2, **DECLARED), request_) is short
        async with serving(Does(lambda x: x * 2, **DECLARED)) as client:
            assert await told(client, request_) == await told(client, ordinary(request_))

    run(test())


@pytest.mark.parametrize("model", [Echo(), Halves()], ids=["messages", "undeclared inputs"])
def test_whose_model_takes_messages_is_left_alone(model: Model) -> None:
    async def test() -> None:
        assert await is_plain(model, infer(model.name)) is isinstance(model, TensorModel)

    run(test())


def test_a_model_of_several_versions_says_which_one_has_answered() -> None:
    class Older(Double):
        version = "0.9"

    async def test() -> None:
        async with serving(Older(), Double()) as client:
            assert (await client("ModelInfer", infer("double"))).model_version == "1"

    run(test())


@pytest.mark.parametrize("kind", [Does, Awaits])
def test_what_a_model_logs_names_it_and_the_request(kind: type[Does]) -> None:
    async def test() -> None:
        model = kind(lambda x: x)
        async with serving(model) as client:
            await told(client, typed(1))
        assert model.logged_as == [("does", "mine")]

    run(test())


def test_a_failure_is_logged_under_the_models_name(caplog: pytest.LogCaptureFixture) -> None:
    named = []

    class Names(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            named.append((model_in_log.get(), request_id.get()))
            return True

    names = Names()
    caplog.handler.addFilter(names)

    async def test() -> None:
        async with serving(Does(raising(RuntimeError("boom")))) as client:
            named.clear()
            await told(client, typed(1))

    try:
        run(test())
    finally:
        caplog.handler.removeFilter(names)
    assert named == [("does", "mine")]


class Busy:
    """A model whose thread is in a first request until it is let go."""

    def __init__(self, **declared: Any) -> None:
        self.begun = threading.Event()
        self.let_go = threading.Event()
        self.asked: list[float] = []
        self.model = Does(self._predict, **DECLARED | declared)

    def _predict(self, x: Any) -> Any:
        self.asked.append(float(x[0]))
        self.begun.set()
        assert self.let_go.wait(30)
        return x

    async def occupy(self, client: Client) -> "asyncio.Future[Any]":
        first = asyncio.ensure_future(told(client, typed(1)))
        await asyncio.to_thread(self.begun.wait, 30)
        return first


def held(client: Client) -> int:
    """Requests that are with the model."""
    return client.server._servicer.core.find("does").held.count


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def statistics(client: Client) -> tuple[int, int]:
    [stats] = (await client("ModelStatistics", name="does")).model_stats
    return stats.inference_stats.success.count, stats.inference_stats.fail.count


@pytest.mark.parametrize("max_batch_size", [0, 1], ids=["alone", "in batches"])
def test_a_call_that_is_cancelled_while_it_waits_leaves_the_queue(max_batch_size: int) -> None:
    async def test() -> None:
        busy = Busy(max_batch_size=max_batch_size)
        async with serving(busy.model) as client:
            first = await busy.occupy(client)
            waiting = client("ModelInfer", typed(2))
            await until(lambda: held(client) == 2)
            waiting.cancel()
            await until(lambda: held(client) == 1)
            busy.let_go.set()
            assert (await first)[0] is grpc.StatusCode.OK
            assert (await told(client, typed(3)))[0] is grpc.StatusCode.OK
            assert busy.asked == [1, 3]
            assert await statistics(client) == (2, 1)

    run(test())


@pytest.mark.parametrize(
    ("declared", "timeout", "says"),
    [
        ({"request_timeout": 0.3}, 30, "Model does did not answer within 0.3 s."),
        ({}, 0.3, ""),
        ({"max_batch_size": 1, "request_timeout": 0.3}, 30, "Model does did not answer within 0.3 s."),
    ],
    ids=["the model's", "the client's", "in batches"],
)
def test_a_call_that_is_late_is_told_so_and_leaves_the_queue(
    declared: dict[str, Any], timeout: float, says: str
) -> None:
    async def test() -> None:
        busy = Busy(**declared)
        async with serving(busy.model, stuck_grace=60) as client:
            first = await busy.occupy(client)
            code, words = await refusal(client("ModelInfer", typed(2), timeout=timeout))
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert says in words
            busy.let_go.set()
            await first
            await until(lambda: held(client) == 0)
            assert busy.asked == [1]

    run(test())


def test_a_call_that_finds_the_queue_full_is_refused() -> None:
    async def test() -> None:
        busy = Busy(max_queue_size=1)
        async with serving(busy.model) as client:
            first = await busy.occupy(client)
            second = asyncio.ensure_future(told(client, typed(2)))
            await until(lambda: held(client) == 2)
            code, words = await refusal(client("ModelInfer", typed(3)))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "1 requests wait already" in words
            busy.let_go.set()
            assert [answer[0] for answer in (await first, await second)] == [grpc.StatusCode.OK] * 2
            assert await statistics(client) == (2, 0)

    run(test())


def test_a_model_that_left_service_refuses() -> None:
    async def test() -> None:
        model = Does(lambda x: x)
        async with serving(model) as client:
            model.ready = False
            assert await refusal(client("ModelInfer", typed(1))) == (
                grpc.StatusCode.UNAVAILABLE,
                "Model with name does is not ready.",
            )

    run(test())
