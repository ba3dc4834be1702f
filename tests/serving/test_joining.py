"""A plain V2 request that joins a batch without a task: answered as any other, and gone when it is given up."""

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from prometheus_client import REGISTRY
from starlette.exceptions import HTTPException

from mpserve.errors import InvalidInput, ServerNotReady
from mpserve.http.accounts import Accounts
from mpserve.http.asking import InBatch
from mpserve.http.lane import Lane
from mpserve.http.responses import Answer
from mpserve.logging import model as model_in_log
from mpserve.logging import request_id
from mpserve.metrics import metrics
from mpserve.serving import tally
from mpserve.serving.batching import Batcher
from mpserve.serving.completion import LARGE
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.express import read_v2
from mpserve.serving.joining import read_joining
from mpserve.serving.tensors import Tensor, TensorModel
from tests.asgi import loaded
from tests.lanes import tallied, whole

PATIENCE = 30.0
MANY = 100
SIZE = 8
Function = Callable[..., Any]


class Rows(TensorModel):
    """Answers each batch as it is told, and notes it."""

    name = "m"
    max_batch_size = SIZE
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)

    def __init__(self, answer: Function = lambda x: x * 2, **declared: Any) -> None:
        super().__init__()
        self.answer = answer
        self.calls: list[list[float]] = []
        self.logged_as: list[tuple[str, str]] = []
        for name, value in declared.items():
            setattr(self, name, value)

    def predict(self, *arrays: Any) -> Any:
        self.calls.append(arrays[0].tolist())
        self.logged_as.append((model_in_log.get(), request_id.get()))
        return self.answer(*arrays)


class Held(Rows):
    """Waits in each call until it is let go."""

    def __init__(self, answer: Function = lambda x: x * 2, **declared: Any) -> None:
        super().__init__(answer, **declared)
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def predict(self, *arrays: Any) -> Any:
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)
        return super().predict(*arrays)


class Later(Rows):
    async def predict(self, *arrays: Any) -> Any:
        await asyncio.sleep(0)
        return self.answer(*arrays)


def v2(*rows: Any, shape: Any = None, datatype: str = "FP32", name: str = "x", **more: Any) -> bytes:
    entry = {"name": name, "shape": [len(rows)] if shape is None else shape, "datatype": datatype, "data": rows}
    return json.dumps({"inputs": [entry], **more}).encode()


class Client:
    """Asks the model of a core over the lane, either way."""

    def __init__(self, core: ServerCore, access_log: bool = False) -> None:
        self.core = core
        self.served = core.find("m")
        self.lane = Lane(Dataplane(core), Accounts(access_log))

    @property
    def batcher(self) -> Batcher:
        batcher = self.served.pipeline.batcher
        assert batcher is not None
        return batcher

    def is_read(self, body: bytes) -> bool:
        batcher = self.served.pipeline.batcher
        return batcher is not None and read_joining(self.served, batcher, read_v2, body) is not None

    def join(self, body: bytes, identity: str = "") -> "tuple[InBatch, asyncio.Future[Answer]]":
        """The request in the batcher's queue, and what will be told of it."""
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asked = self.lane.accept(b"/v2/models/m/infer", [(b"x-request-id", identity.encode())])
        assert asked is not None
        ticket = self.lane.begin(asked, body, None, lambda answer, identity: told.set_result(whole(answer)))
        assert isinstance(ticket, InBatch)
        assert not told.done()
        return ticket, told

    async def go_ordinarily(self, body: bytes) -> Answer:
        asked = self.lane.accept(b"/v2/models/m/infer", [])
        assert asked is not None
        answer, _ = await self.lane.answer(asked, body, None)
        assert isinstance(answer, Answer)
        return answer

    async def hold(self, model: Held) -> "asyncio.Future[Answer]":
        """A request with which the model has begun."""
        _, told = self.join(v2(0))
        await asyncio.to_thread(model.begun.acquire, timeout=PATIENCE)
        return told

    async def until_idle(self) -> None:
        await self.served.held.until_idle()
        assert self.core.row.in_flight == 0


def with_client(model: TensorModel, test: Callable[[Client], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with loaded(model, **options) as core:
            await asyncio.wait_for(test(Client(core)), PATIENCE)

    asyncio.run(main())


def data(answer: Answer) -> Any:
    assert answer.status == 200
    return json.loads(answer.body)["outputs"][0]["data"]


def words(answer: Answer) -> Any:
    return json.loads(answer.body)["error"]


def raising(error: BaseException) -> Function:
    def fail(*given: Any) -> None:
        raise error

    return fail


def with_nan(x: Any) -> Any:
    return np.where(x == 1, np.float32(np.nan), x)


class Case(NamedTuple):
    model: Callable[[], Rows]
    body: bytes
    status: int = 200
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


TWO = (Tensor("y", "INT64", (-1,)), Tensor("z", "FP32", (-1, 2)))
CASES = {
    "a row": Case(Rows, v2(1)),
    "rows and an id": Case(Rows, v2(1, 2.5, 3, id="é")),
    "as many rows as a batch has": Case(Rows, v2(*range(SIZE))),
    "a long body": Case(lambda: Rows(inputs=(Tensor("x", "FP32", (-1, 400)),), outputs=()), v2(*range(400), shape=[1, 400])),
    "an async model": Case(lambda: Later(lambda x: x + 1), v2(1, 2)),
    "an async model that fails": Case(lambda: Later(raising(ValueError("bad"))), v2(1), 500),
    "no declared outputs": Case(lambda: Rows(outputs=()), v2(1, 2)),
    "no declared inputs": Case(lambda: Rows(inputs=()), v2(1, 2)),
    "nothing declared": Case(lambda: Rows(inputs=(), outputs=()), v2(1, 2, datatype="INT64", name="z", id="7")),
    "two outputs": Case(lambda: Rows(lambda x: (x.astype(int), np.stack([x, x], 1)), outputs=TWO), v2(1, 2, id="7")),
    "a dict of outputs": Case(lambda: Rows(lambda x: {"z": np.stack([x, x], 1), "y": x.astype(int)}, outputs=TWO), v2(1)),
    "FP64 for FP32": Case(lambda: Rows(lambda x: x.astype(float)), v2(1)),
    "FP16": Case(lambda: Rows(lambda x: x.astype(np.float16), outputs=(Tensor("y", "FP16", (-1,)),)), v2(1.5, id="7")),
    "BYTES": Case(lambda: Rows(lambda x: np.array([b"a"] * len(x), object), outputs=(Tensor("y", "BYTES", (-1,)),)), v2(1)),
    "BYTES that are no text": Case(
        lambda: Rows(lambda x: np.array([b"\xff"], object), outputs=(Tensor("y", "BYTES", (-1,)),)), v2(1), 500
    ),
    "a column": Case(lambda: Rows(lambda x: np.stack([x, x + 1], 1)[:, 1]), v2(1, 2)),
    "NaN": Case(lambda: Rows(with_nan), v2(0, 1), 500),
    "NaN that may be null": Case(lambda: Rows(with_nan), v2(0, 1), options={"nonfinite": "null"}),
    "too few rows": Case(lambda: Rows(lambda x: x[1:]), v2(1, 2), 500),
    "another shape": Case(lambda: Rows(lambda x: x.reshape(-1, 1)), v2(1, 2), 500),
    "None": Case(lambda: Rows(lambda x: None), v2(1), 500),
    "an iterator": Case(lambda: Rows(iter), v2(1), 500),
    "the model's fault": Case(lambda: Rows(raising(ValueError("bad"))), v2(1), 500),
    "the client's fault": Case(lambda: Rows(raising(InvalidInput("no cat"))), v2(1), 400),
    "no such operation": Case(lambda: Rows(raising(NotImplementedError("no kernel"))), v2(1), 501),
    "a status of the model's own": Case(lambda: Rows(raising(HTTPException(418, "a teapot"))), v2(1), 418),
    "an end of the process": Case(lambda: Rows(raising(SystemExit(3))), v2(1), 500),
    "a cancelled model": Case(lambda: Rows(raising(asyncio.CancelledError())), v2(1), 500),
}  # fmt: skip
COUNTED = (tally.SUCCESSES, tally.FAILURES, tally.ROWS, tally.EXECUTIONS)


def observed() -> float:
    metrics().flush()
    return REGISTRY.get_sample_value("request_predict_seconds_count", {"model_name": "m"}) or 0


async def outcome(case: Case, joins: bool, access_log: bool) -> Any:
    """The answer, and what is counted of it."""
    async with loaded(case.model(), **case.options) as core:
        client, before = Client(core, access_log), observed()
        answer: Any = await (client.join(case.body)[1] if joins else client.go_ordinarily(case.body))
        await client.until_idle()
        return tuple(answer), observed() - before, tallied(client.served, COUNTED)


@pytest.mark.parametrize("access_log", [False, True], ids=["", "logged"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_request_that_joins_is_answered_and_counted_as_one_that_goes_the_ordinary_way(
    case: Case, access_log: bool
) -> None:
    joined = asyncio.run(asyncio.wait_for(outcome(case, True, access_log), PATIENCE))
    assert joined[0][0] == case.status
    assert joined == asyncio.run(asyncio.wait_for(outcome(case, False, access_log), PATIENCE))


LEFT_ALONE = {
    "another datatype": (v2(1, datatype="FP64"), 400),
    "a datatype in lower case": (v2(1, datatype="fp32"), 200),
    "another shape": (v2(1, 2, shape=[2, 1]), 400),
    "a shape of another size": (v2(1, 2, shape=[3]), 400),
    "another name": (v2(1, name="z"), 400),
    "no input": (b'{"inputs": []}', 400),
    "an input too many": (json.dumps({"inputs": [json.loads(v2(1, name=name))["inputs"][0] for name in "xz"]}).encode(), 400),
    "a value that is no number": (v2(True), 400),
    "a value out of range": (v2(1e39), 400),
    "more rows than a batch has": (v2(*range(SIZE + 1)), 400),
    "no rows": (v2(), 200),
    "an id that is a number": (v2(1, id=7), 400),
    "an id that is null": (v2(1, id=None), 200),
    "parameters": (v2(1, parameters={"a": 1}), 200),
    "a wanted output": (v2(1, outputs=[{"name": "y"}]), 200),
    "an unknown field": (v2(1, other=1), 200),
    "no JSON": (b"{", 400),
    "nothing": (b"", 400),
    "a body too large": (v2(1).ljust(LARGE + 1), 200),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_whatever_is_not_plainly_as_declared_goes_the_ordinary_way(body: bytes, status: int) -> None:
    async def test(client: Client) -> None:
        assert not client.is_read(body)
        asked = client.lane.accept(b"/v2/models/m/infer", [])
        assert asked is not None
        assert client.lane.begin(asked, body, None, lambda *told: pytest.fail(str(told))) is None
        assert (await client.go_ordinarily(body)).status == status

    with_client(Rows(), test)


def test_inputs_of_different_numbers_of_rows_go_the_ordinary_way_and_are_refused() -> None:
    pair = (Tensor("x", "FP32", (-1,)), Tensor("n", "FP32", (-1,)))
    inputs = [json.loads(v2(*rows, name=name))["inputs"][0] for name, rows in (("x", [1, 2]), ("n", [3]))]

    async def test(client: Client) -> None:
        body = json.dumps({"inputs": inputs}).encode()
        assert not client.is_read(body)
        assert "first dimension" in words(await client.go_ordinarily(body))

    with_client(Rows(inputs=pair), test)


def test_a_body_that_is_just_not_too_large_joins() -> None:
    async def test(client: Client) -> None:
        assert data(await client.join(v2(1).ljust(LARGE))[1]) == [2.0]

    with_client(Rows(), test)


@pytest.mark.parametrize(
    "model",
    [Rows(max_batch_size=0), Rows(postprocess=lambda payload, headers=None: payload)],
    ids=["no batches", "a stage of its own"],
)
def test_a_request_to_a_model_that_takes_more_than_arrays_or_no_batches_is_not_read(model: Rows) -> None:
    async def test(client: Client) -> None:
        assert not client.is_read(v2(1))
        assert data(await client.go_ordinarily(v2(1))) == [2.0]

    with_client(model, test)


def test_a_model_that_is_not_ready_is_given_nothing() -> None:
    async def test(client: Client) -> None:
        client.served.model.ready = False
        assert not client.is_read(v2(1))
        assert (await client.go_ordinarily(v2(1))).status == 503
        client.served.model.ready = True
        assert client.is_read(v2(1))

    with_client(Rows(), test)


def test_a_full_queue_is_not_joined_and_the_ordinary_way_says_so() -> None:
    model = Held(max_batch_size=1, max_queue_size=1)

    async def test(client: Client) -> None:
        first = await client.hold(model)
        _, second = client.join(v2(1))
        assert not client.is_read(v2(2))
        refused = await client.go_ordinarily(v2(2))
        assert (refused.status, dict(refused.headers)[b"retry-after"]) == (503, b"1")
        model.go.release(MANY)
        assert [data(await first), data(await second)] == [[0.0], [2.0]]
        assert client.is_read(v2(2))

    with_client(model, test)


def test_requests_of_one_batch_get_their_own_rows_and_ids_whichever_way_they_came() -> None:
    model = Held()

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(*rows, id=str(rows)))[1] for rows in ([1], [2, 3], [4, 5, 6])]
        ordinary = asyncio.create_task(client.go_ordinarily(v2(7, 8, id="[7, 8]")))
        while len(client.batcher) < 4:
            await asyncio.sleep(0)
        model.go.release(MANY)
        assert data(await first) == [0.0]
        answers = [json.loads((await answer).body) for answer in (*joined, ordinary)]
        for answer, rows in zip(answers, ([1], [2, 3], [4, 5, 6], [7, 8]), strict=True):
            output = {"name": "y", "shape": [len(rows)], "datatype": "FP32", "data": [2.0 * row for row in rows]}
            assert answer == {"model_name": "m", "id": str(rows), "outputs": [output]}
        assert model.calls == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]

    with_client(model, test)


def test_what_the_model_logs_names_the_model_and_the_first_request_of_the_batch() -> None:
    model = Held()

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(1), identity)[1] for identity in ("a", "b")]
        model.go.release(MANY)
        await asyncio.gather(first, *joined)
        assert model.logged_as[1:] == [("m", "a")]
        assert (model_in_log.get(), request_id.get()) == ("-", "-")

    with_client(model, test)


def test_another_number_of_rows_than_was_given_fails_that_batch_in_words_and_no_other() -> None:
    model = Held(lambda x: x if len(x) == 1 else x[1:])

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(row))[1] for row in (1, 2)]
        model.go.release(MANY)
        assert data(await first) == [0.0]
        for answer in await asyncio.gather(*joined):
            assert answer.status == 500
            assert "a batch of 2 rows and returned shape [1]; expected 2" in words(answer)
        assert data(await client.join(v2(3))[1]) == [3.0]
        await client.until_idle()

    with_client(model, test)


def fails_with_a_row_of_minus_one(x: Any) -> Any:
    if (x == -1).any():
        raise ValueError("a row of -1")
    return x * 2


class Lines(logging.Handler):
    """What is logged, each line with the model and the request that it would name."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((model_in_log.get(), request_id.get(), record.getMessage()))


def test_a_failing_row_is_told_to_its_own_request_alone_and_logged_under_its_id() -> None:
    model, handler = Held(fails_with_a_row_of_minus_one), Lines()

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(row), f"of{row}")[1] for row in (1, -1, 2)]
        model.go.release(MANY)
        assert data(await first) == [0.0]
        one, failed, two = await asyncio.gather(*joined)
        assert [data(one), data(two)] == [[2.0], [4.0]]
        assert (failed.status, words(failed)) == (500, "ValueError : a row of -1")
        assert handler.lines == [("m", "of-1", "the model failed: ValueError : a row of -1")]

    logging.getLogger("mpserve.http.responses").addHandler(handler)
    try:
        with_client(model, test)
    finally:
        logging.getLogger("mpserve.http.responses").removeHandler(handler)


def test_what_is_no_json_is_an_error_of_its_own_request_alone() -> None:
    model = Held(with_nan)

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(row))[1] for row in (1, 2)]
        model.go.release(MANY)
        await first
        failed, two = await asyncio.gather(*joined)
        assert failed.status == 500
        assert "NaN or infinity" in words(failed)
        assert data(two) == [2.0]
        assert model.calls == [[0], [1, 2]]

    with_client(model, test)


@pytest.mark.parametrize("gone", range(3))
def test_a_request_that_is_cancelled_leaves_the_queue_and_takes_nothing_from_its_neighbours(gone: int) -> None:
    model = Held()

    async def test(client: Client) -> None:
        first = await client.hold(model)
        joined = [client.join(v2(row)) for row in (1, 2, 3)]
        assert client.served.held.count == 4
        ticket, told = joined.pop(gone)
        assert ticket.cancel()
        assert not ticket.cancel()
        assert (client.served.held.count, client.core.row.in_flight) == (3, 3)
        model.go.release(MANY)
        rest = [row for row in (1.0, 2.0, 3.0) if row != gone + 1]
        assert [data(await answer) for _, answer in joined] == [[2 * row] for row in rest]
        await first
        await client.until_idle()
        assert model.calls == [[0], rest]
        assert not told.done()

    with_client(model, test)


def test_a_request_that_the_model_has_begun_with_cannot_be_cancelled() -> None:
    model = Held()

    async def test(client: Client) -> None:
        ticket, told = client.join(v2(1))
        await asyncio.to_thread(model.begun.acquire, timeout=PATIENCE)
        assert not ticket.cancel()
        model.go.release(MANY)
        assert data(await told) == [2.0]
        assert not ticket.cancel()
        await client.until_idle()

    with_client(model, test)


def test_a_request_whose_time_is_up_while_it_waits_is_told_so_and_never_reaches_the_model() -> None:
    model = Rows(request_timeout=0.01, max_batch_delay=2 * PATIENCE)

    async def test(client: Client) -> None:
        ticket, told = client.join(v2(1))
        answer = await told
        assert (answer.status, words(answer)) == (504, "Model m did not answer within 0.01 s.")
        assert not ticket.cancel()
        await client.until_idle()
        assert model.calls == []
        full: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        rows = [np.arange(SIZE, dtype=np.float32)]
        client.batcher.enter(rows, tally.Stopwatch(), full, copy_context().copy)  # which has no time of its own
        await full
        assert model.calls == [list(range(SIZE))]

    with_client(model, test)


def test_a_request_that_is_given_up_while_the_model_is_at_it_is_told_at_once_and_only_once() -> None:
    model = Held(request_timeout=2 * PATIENCE)

    async def test(client: Client) -> None:
        told = await client.hold(model)
        client.served.admission.abandon(ServerNotReady("stuck"))
        assert (await told).status == 503
        await client.until_idle()
        _, behind = client.join(v2(1))
        model.go.release(MANY)
        assert data(await behind) == [2.0]

    with_client(model, test)


REQUESTS, AT_ONCE = 600, 30


@pytest.mark.parametrize("kind", [Rows, partial(Rows, concurrency=3), Later], ids=["one", "three", "async"])
def test_of_many_requests_each_gets_its_own_answer_and_all_are_counted(kind: Callable[..., Rows]) -> None:
    async def test(client: Client) -> None:
        numbers = iter(range(1, REQUESTS + 1))

        async def ask() -> None:
            for number in numbers:
                row = -1 if number % 50 == 0 else number
                _, told = client.join(v2(row, *[number] * (number % 3), id=str(number)))
                answer = await told
                if row == -1:
                    assert answer.status == 500
                else:
                    assert data(answer) == [2.0 * number] * (1 + number % 3)
                    assert json.loads(answer.body)["id"] == str(number)

        await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
        await client.until_idle()
        failures = REQUESTS // 50
        counted = tallied(client.served, (tally.SUCCESSES, tally.FAILURES))
        assert counted == [REQUESTS - failures, failures]

    with_client(kind(fails_with_a_row_of_minus_one), test)
