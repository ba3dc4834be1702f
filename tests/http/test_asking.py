"""The three ways of the lane and the ordinary way: whatever is asked, the same is answered, counted and logged."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from mpserve.errors import InvalidInput
from mpserve.http.accounts import Accounts
from mpserve.http.asking import InBatch, InOneGo, InTask
from mpserve.http.lane import Lane
from mpserve.serving import tally
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.tensors import FunctionModel, Tensor, TensorModel
from tests.asgi import loaded
from tests.lanes import (
    COUNTED,
    ROWS,
    V1,
    V2,
    Arrays,
    Case,
    Function,
    awaited,
    begun,
    case,
    logged,
    nan_at,
    outcome,
    raising,
    tallied,
    v2,
)

PATIENCE = 30.0
GZIP = [(b"accept-encoding", b"gzip")]
WAYS = {"V1": (V1, ROWS), "V2": (V2, v2(id="7"))}


class Later(Arrays):
    async def predict(self, *arrays: Any) -> Any:
        await asyncio.sleep(0)
        return self.answer(*arrays)


def functions(answer: Function, waits: bool) -> FunctionModel:
    """A bare function, which declares nothing."""

    async def later(*arrays: Any) -> Any:
        await asyncio.sleep(0)
        return answer(*arrays)

    return FunctionModel("m", later if waits else answer, None)


async def parts(x: Any) -> AsyncIterator[Any]:
    yield x
    yield x


LATER: dict[str, Function] = {
    **{
        f"raises {error!r}": raising(error)
        for error in (
            ValueError("bad"), InvalidInput("no cat"), HTTPException(418, "a teapot"), SystemExit(3), NotImplementedError(),
            NotImplementedError("no kernel"), TimeoutError(), OSError(5, "disk"), StopAsyncIteration(),
        )
    },
    "doubles": lambda x: x * 2,
    "a tuple": lambda x: (x,),
    "a dict": lambda x: {"y": x},
    "FP64": lambda x: x.astype(np.float64),
    "a column": lambda x: np.stack([x, x], 1)[:, 1],
    "another shape": lambda x: x.reshape(-1, 1),
    "None": lambda x: None,
    "NaN": nan_at(-1),
    "much": lambda x: np.zeros(3000, np.float32),
    "an iterator": lambda x: iter([x, x]),
    "parts": parts,
    "parts that fail at once": lambda x: (InvalidInput("no parts") for _ in raising(InvalidInput("no parts"))()),
}  # fmt: skip
REFUSED: dict[str, tuple[str, Any]] = {
    "V1, text": (V1, {"instances": ["a"]}),
    "V1, out of range": (V1, {"instances": [1e39]}),
    "V1, no JSON": (V1, b"{"),
    "V2, a wrong shape": (V2, v2(shape=[3])),
    "V2, parameters": (V2, v2(parameters={"a": 1})),
    "V2, out of range": (V2, v2([1, 1e39])),
}
IN_TASK: dict[str, Case] = {}
for way, (path, body) in WAYS.items():
    for name, answer in LATER.items():
        IN_TASK[f"{way} | {name}"] = case(partial(Later, answer), path, body)
    IN_TASK |= {
        f"{way} | null": case(partial(Later, nan_at(0)), path, body, options={"nonfinite": "null"}),
        f"{way} | gzip, small": case(partial(Later, lambda x: x), path, body, headers=GZIP),
        f"{way} | gzip, large": case(partial(Later, lambda x: np.zeros(5000, np.float32)), path, body, headers=GZIP),
        f"{way} | gzip, huge": case(partial(Later, lambda x: np.zeros(90000, np.float32)), path, body, headers=GZIP),
        f"{way} | gzip, an error": case(partial(Later, raising(ValueError("x" * 5000))), path, body, headers=GZIP),
        f"{way} | an id": case(partial(Later, lambda x: x), path, body, headers=[(b"x-request-id", b"mine")]),
    }


async def ticket(lane: Lane, case: Case) -> Any:
    """What answers a request, which is given up at once if it is there."""
    asked = lane.accept(case.path.encode(), case.headers)
    assert asked is not None
    return lane.begin(asked, case.body, None, lambda *told: None)


async def kind(case: Case) -> Any:
    async with loaded(*case.models(), **case.options) as core:
        one = await ticket(Lane(Dataplane(core), Accounts(access_log=False)), case)
        if one is not None:
            one.cancel()
        return type(one)


@pytest.mark.parametrize("access_log", [False, True], ids=["", "logged"])
@pytest.mark.parametrize("case", IN_TASK.values(), ids=IN_TASK)
def test_an_async_model_is_answered_counted_and_logged_in_a_task_as_in_the_ordinary_way(
    case: Case, access_log: bool
) -> None:
    in_task = asyncio.run(outcome(case, begun, access_log))
    assert in_task is not None
    assert in_task == asyncio.run(outcome(case, awaited, access_log))
    assert (case.path in str(in_task[2])) == access_log


@pytest.mark.parametrize(("path", "body"), REFUSED.values(), ids=REFUSED)
def test_what_an_async_model_cannot_be_given_as_it_is_goes_the_ordinary_way(path: str, body: Any) -> None:
    assert asyncio.run(outcome(case(partial(Later, lambda x: x), path, body), begun)) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: Arrays(lambda x: x), InOneGo),
        (lambda: Later(lambda x: x), InTask),
        (lambda: functions(lambda x: x, False), InOneGo),
        (lambda: functions(lambda x: x, True), InTask),
        (lambda: Arrays(lambda x: x, max_batch_size=4), InBatch),
        (lambda: Later(lambda x: x, max_batch_size=4), InBatch),
        (lambda: Later(lambda x: x, concurrency=2), type(None)),
        (lambda: Later(lambda x: x, request_timeout=60), type(None)),
        (lambda: Later(lambda x: x, postprocess=lambda payload, headers=None: payload), type(None)),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_plain_request_goes_the_way_that_its_model_allows(model: Any, expected: type, way: str) -> None:
    assert asyncio.run(kind(case(model, *WAYS[way]))) is expected


UNDECLARED: dict[str, Function] = {
    "an array": lambda x: x,
    "a tuple": lambda x: (x, x + 1),
    "a tuple of one": lambda x: (x,),
    "a tuple of several lengths": lambda x: (x, x[:1]),
    "a dict": lambda x: {"b": x, "a": x.sum()},
    "a dict of one": lambda x: {"null": x},
    "a dict by numbers": lambda x: {1: x},
    "a scalar": lambda x: x.sum(),
    "a float": lambda x: 1.5,
    "an int": lambda x: 7,
    "a boolean": lambda x: True,
    "a list": lambda x: [1, 2],
    "a list of lists": lambda x: [[1.5], [2]],
    "a ragged list": lambda x: [[1], [2, 3]],
    "an empty list": lambda x: [],
    "booleans": lambda x: x > 1,
    "float16": lambda x: x.astype(np.float16),
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x.astype(np.float64) / 3,
    "int8": lambda x: x.astype(np.int8),
    "uint64": lambda x: x.astype(np.uint64) + np.uint64(2**63),
    "longlong": lambda x: x.astype(np.longlong),
    "a column": lambda x: np.stack([x, x + 1], 1)[:, 1],
    "a transposed table": lambda x: np.stack([x, x + 1], 1).T,
    "column-major": lambda x: np.asfortranarray(np.stack([x, x + 1])),
    "reversed": lambda x: x[::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "text": lambda x: np.array(["é", "b"]),
    "bytes": lambda x: np.array([b"a", b"\xff"], object),
    "a string": lambda x: "é",
    "0-d": lambda x: np.array(1.5, np.float32),
    "0-d of 16 bits": lambda x: np.array(1.5, np.float16),
    "nothing": lambda x: x[:0],
    "nothing of rank 2": lambda x: np.zeros((0, 3)),
    "NaN": lambda x: np.array([1.0, np.nan]),
    "NaN of 16 bits": lambda x: np.array([1.0, np.nan], np.float16),
    "infinity": lambda x: np.array([np.inf], np.float32),
    "NaN in one of two": lambda x: (x, np.array([np.nan])),
    "a NaN": lambda x: float("nan"),
    "much": lambda x: np.arange(5000.0),
    "much with NaN": lambda x: np.where(np.arange(5000) == 4321, np.nan, 1.0),
    "much with NaN in one of two": lambda x: (np.ones(3000), np.full(3000, np.nan)),
    "much with NaN under odd names": lambda x: {'"data":[': np.full(3000, np.inf), "n": np.ones(3000)},
    "much under an odd name": lambda x: {'"data":[n': np.ones(3000)},
    "dates": lambda x: np.array(["2020-01-01"], "M8[D]"),
    "complex": lambda x: x.astype(complex),
    "a masked array": lambda x: np.ma.masked_array(x, [True, False]),
    "None": lambda x: None,
    "an object": lambda x: object(),
    "a failure": raising(ValueError("bad")),
}


@pytest.mark.parametrize("nonfinite", ["error", "null"])
@pytest.mark.parametrize("waits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answer", UNDECLARED.values(), ids=UNDECLARED)
def test_a_model_that_declares_nothing_is_answered_and_counted_alike(
    answer: Function, way: str, waits: bool, nonfinite: str
) -> None:
    one = case(lambda: functions(answer, waits), *WAYS[way], options={"nonfinite": nonfinite})
    short = asyncio.run(outcome(one, begun))
    assert short is not None
    assert short == asyncio.run(outcome(one, awaited))


@pytest.mark.parametrize("waits", [False, True], ids=["sync", "async"])
def test_a_model_that_declares_nothing_is_given_several_inputs_in_the_order_of_the_request(waits: bool) -> None:
    inputs = [v2([number], [1])["inputs"][0] | {"name": name} for number, name in enumerate("zay")]
    one = case(lambda: functions(lambda *given: np.concatenate(given), waits), V2, {"inputs": inputs})
    short = asyncio.run(outcome(one, begun))
    assert short is not None
    assert short == asyncio.run(outcome(one, awaited))


async def both(core: ServerCore, path: str, body: bytes) -> tuple[int, bytes]:
    """The answer to a request, which is the same both ways."""
    lane, given = Lane(Dataplane(core), Accounts(access_log=False)), case([], path, body)
    ordinary, _ = await awaited(lane, given)
    told = await begun(lane, given)
    assert told is None or tuple(told[0]) == tuple(ordinary)
    return ordinary.status, ordinary.body


VALUES = [
    0, -1, 1.5, True, 127, 128, -128, -129, 255, 256, 32767, 32768, -32769, 65504, 65519, 65520, 65519.99, 70000, -70000.5, 1e-50,
    2**24 + 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 3.4028234e38, 3.4028235e38, 3.4028236e38,
    -3.4028236e38, 1e39, -1e39, 1e154, 1e308, 10**39, None, "1",
]  # fmt: skip
RANGES = {
    "FP16": ({65504, 65519}, {70000, -70000.5, 1e39}),
    "FP32": ({3.4028234e38, 3.4028235e38, 70000}, {3.4028236e38, 1e39, -1e39, 1e308}),
    "FP64": ({1e39, 1e308}, set()),
    "INT8": ({127, -128}, {128, -129, 2**31}),
    "INT64": ({2**63 - 1, -(2**63)}, {2**63, 2**64 - 1}),
    "UINT8": ({255}, {256, -1}),
    "UINT64": ({2**64 - 1}, {-1}),
    "BF16": ({1.5, 70000}, {1e39}),
    "BOOL": (set(), {256, "1"}),
    "": (set(), set()),
}
"""By datatype some of the values that it holds, and some that it does not; none: undeclared."""


@pytest.mark.parametrize("waits", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("datatype", RANGES)
@pytest.mark.parametrize("length", [1, 60, 500, 5000])
def test_a_value_in_a_body_of_any_length_is_taken_or_refused_alike(datatype: str, waits: bool, length: int) -> None:
    """Also where it is added to others, or read by several threads."""
    declared = (Tensor("x", datatype, (-1,)),) if datatype else ()
    inside, outside = RANGES[datatype]

    async def main() -> None:
        async with loaded((Later if waits else Arrays)(lambda x: x[-2:], inputs=declared, outputs=())) as core:
            for value in VALUES:
                for rows in ([*[1] * (length - 1), value], [value, *[1.5] * (length - 1)]):
                    is_plain = rows[-1] is value or datatype[:1] in ("F", "B")
                    sent = json.dumps(v2(rows, [length], datatype or "FP64")).encode()
                    for path, body in ((V1, json.dumps({"instances": rows}).encode()), (V2, sent)):
                        status, _ = await both(core, path, body)
                        if value is not True and value in outside:
                            assert status == 400
                        if value is not True and value in inside and is_plain:
                            assert status == 200

    asyncio.run(main())


def test_v1_requests_join_one_batch_with_those_of_v2_and_each_gets_its_own_rows() -> None:
    sizes = []

    def doubles(x: Any) -> Any:
        sizes.append(len(x))
        return x * 2

    async def main() -> None:
        async with loaded(Arrays(doubles, max_batch_size=8)) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=False))
            one, two = case([], V1, {"instances": [1, 2]}), case([], V2, v2([3, 4, 5], [3]))
            three = case([], V1, {"instances": [{"x": 6}]})
            answers = await asyncio.gather(*(begun(lane, each) for each in (one, two, three)))
            assert answers[0][0].body == b'{"predictions":[2.0,4.0]}'
            assert json.loads(answers[1][0].body)["outputs"][0]["data"] == [6.0, 8.0, 10.0]
            assert answers[2][0].body == b'{"predictions":[12.0]}'
            assert sizes == [6]
            served = core.find("m")
            assert tallied(served, COUNTED) == [3, 0, 6, 1]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


IN_BATCH = {
    "doubles": lambda x: x * 2,
    "FP64": lambda x: x.astype(np.float64),
    "a column": lambda x: np.stack([x, x], 1)[:, 1],
    "NaN": nan_at(0),
    "another shape": lambda x: x.reshape(-1, 1),
    "too few rows": lambda x: x[1:],
    "None": lambda x: None,
    "an iterator": iter,
    **{
        f"raises {error!r}": raising(error)
        for error in (ValueError("bad"), InvalidInput("no cat"), HTTPException(418, "a teapot"), SystemExit(3))
    },
}


@pytest.mark.parametrize("access_log", [False, True], ids=["", "logged"])
@pytest.mark.parametrize("nonfinite", ["error", "null"])
@pytest.mark.parametrize("kind", [Arrays, Later])
@pytest.mark.parametrize("answer", IN_BATCH.values(), ids=IN_BATCH)
def test_a_v1_request_that_joins_a_batch_is_answered_counted_and_logged_as_in_the_ordinary_way(
    answer: Function, kind: Callable[..., TensorModel], nonfinite: str, access_log: bool
) -> None:
    one = case(partial(kind, answer, max_batch_size=4), V1, ROWS, options={"nonfinite": nonfinite})
    joined = asyncio.run(outcome(one, begun, access_log))
    assert joined is not None
    assert joined == asyncio.run(outcome(one, awaited, access_log))


class Waits(TensorModel):
    """Waits until it is cancelled, and then until it may end."""

    name = "m"

    def __init__(self, swallows: bool = False) -> None:
        super().__init__()
        self.swallows = swallows
        self.begun, self.cancelled, self.go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def predict(self, x: Any) -> Any:
        try:
            self.begun.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.go.wait()
            if not self.swallows:
                raise
        return x


class WaitsInParts(Waits):
    async def predict(self, x: Any) -> Any:
        return self.parts(x)

    async def parts(self, x: Any) -> AsyncIterator[Any]:
        yield await super().predict(x)


@pytest.mark.parametrize("swallows", [False, True], ids=["ends", "answers all the same"])
@pytest.mark.parametrize("kind", [Waits, WaitsInParts])
@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_goes_cancels_predict_and_the_visit_lasts_until_that_has_ended(
    way: str, kind: type[Waits], swallows: bool
) -> None:
    """Which nobody is told, in the log neither."""

    async def main() -> None:
        model, told = kind(swallows), []
        async with loaded(model) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=True))
            path, body = WAYS[way]
            asked = lane.accept(path.encode(), [])
            assert asked is not None
            with logged() as lines:
                one = lane.begin(asked, json.dumps(body).encode(), None, lambda *answer: told.append(answer))
                assert isinstance(one, InTask)
                if kind is Waits or way == "V1":
                    await model.begun.wait()
                    assert one.cancel()
                    assert not one.cancel()
                    await model.cancelled.wait()
                    assert (core.row.in_flight, core.find("m").held.count) == (1, 1)
                    model.go.set()
                await core.find("m").held.until_idle()
                while one.task is not None and not one.task.done():
                    await asyncio.sleep(0)
            assert core.row.in_flight == 0
            if kind is Waits or way == "V1":
                assert told == []
                assert lines == []
                served = core.find("m")
                answered = swallows and kind is Waits
                assert tallied(served, (tally.SUCCESSES, tally.FAILURES)) == [
                    answered,
                    not answered,
                ]

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_request_that_is_cancelled_before_its_task_has_begun_ends_its_visit_and_is_not_counted() -> None:
    async def main() -> None:
        model = Waits()
        async with loaded(model) as core:
            one = await ticket(Lane(Dataplane(core), Accounts(access_log=False)), case([], *WAYS["V2"]))
            assert isinstance(one, InTask)
            assert one.cancel()
            await core.find("m").held.until_idle()
            assert core.row.in_flight == 0
            for _ in range(3):
                await asyncio.sleep(0)
            served = core.find("m")
            assert tallied(served, COUNTED) == [0, 0, 0, 0]
            assert (core.row.in_flight, served.held.count, model.begun.is_set()) == (0, 0, False)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


class AtOnce(Arrays):
    async def predict(self, *arrays: Any) -> Any:
        return self.answer(*arrays)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answer", [lambda x: np.zeros(90000, np.float32), parts], ids=["compressed", "in parts"])
def test_a_client_that_goes_when_predict_has_just_ended_ends_the_visit(answer: Function, way: str) -> None:
    async def main() -> None:
        async with loaded(AtOnce(answer)) as core:
            one = await ticket(Lane(Dataplane(core), Accounts(access_log=False)), case([], *WAYS[way], headers=GZIP))
            assert isinstance(one, InTask)
            while one.task is None:
                await asyncio.sleep(0)
            assert one.cancel()
            await core.find("m").held.until_idle()
            assert core.row.in_flight == 0

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


class CancelsItself(TensorModel):
    name = "m"

    async def predict(self, x: Any) -> Any:
        if x[0]:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return x


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_cancels_its_own_task_fails_that_request_alone(way: str) -> None:
    async def main() -> None:
        async with loaded(CancelsItself()) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=True))
            with logged() as lines:
                answer, identity = await begun(lane, case([], *WAYS[way]))
            assert (answer.status, core.row.in_flight) == (500, 0)
            assert {line[2] for line in lines} == {identity.decode()}
            assert [line[0] for line in lines] == ["mpserve.http.responses", "mpserve.access"]
            answer, _ = await begun(lane, case([], V1, {"instances": [0]}))
            assert (answer.status, answer.body) == (200, b'{"predictions":[0]}')
            await core.find("m").held.until_idle()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
