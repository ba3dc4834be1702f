"""The two ways that a request on the lane may go, for tests of what comes of it on either."""

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from prometheus_client import REGISTRY

from mpserve.http.accounts import Accounts
from mpserve.http.lane import Lane
from mpserve.http.responses import JSON_ONLY, Answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.logging import model as model_in_log
from mpserve.logging import request_id
from mpserve.metrics import STAGES, metrics
from mpserve.serving import tally
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.model import Model
from mpserve.serving.served import Served
from mpserve.serving.tensors import Tensor, TensorModel
from tests.asgi import loaded

Function = Callable[..., Any]
RawHeaders = list[tuple[bytes, bytes]]


class Arrays(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)

    def __init__(self, answer: Function, **declared: Any) -> None:
        super().__init__()
        self.answer = answer
        for name, value in declared.items():
            setattr(self, name, value)

    def predict(self, *arrays: Any) -> Any:
        return self.answer(*arrays)


def raising(error: BaseException) -> Function:
    def fail(*given: Any) -> None:
        raise error

    return fail


def nan_at(position: int) -> Function:
    def answer(x: Any) -> Any:
        x = x.copy()
        x[position] = np.nan
        return x

    return answer


class Case(NamedTuple):
    models: Callable[[], list[Model]]
    path: str
    body: bytes
    headers: RawHeaders = []  # noqa: RUF012 (never changed)
    options: dict[str, Any] = {}  # noqa: RUF012
    begins: bool = True
    """Whether it is one to run to completion."""


V1, V2 = "/v1/models/m:predict", "/v2/models/m/infer"
ROWS = {"instances": [1, 2.5]}


def v2(data: Any = (1, 2.5), shape: Any = (2,), datatype: str = "FP32", name: str = "x", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}], **more}


def case(model: Function | list[Function], path: str, body: Any, **more: Any) -> Case:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    makers = model if isinstance(model, list) else [model]
    return Case(lambda: [make() for make in makers], path, raw, **more)


def whole(answer: Any) -> Any:
    """What is told, with its status and headers also if they are the usual ones."""
    return Answer(200, JSON_ONLY, answer) if isinstance(answer, bytes) else answer


async def sent(answer: Any) -> tuple[int, Any, bytes]:
    """Status, headers and body, of parts too, and how those ended."""
    answer = whole(answer)
    if not isinstance(answer, StreamedAnswer):
        return answer.status, answer.headers, answer.body
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    await answer({}, receive, send)
    return answer.status, answer.headers, b"|".join(message.get("body", b"") for message in messages)


async def begun(lane: Lane, case: Case) -> Any:
    """What is told of a request that is run to completion; None if it is none to begin so."""
    told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asked = lane.accept(case.path.encode(), case.headers)
    assert asked is not None
    one = lane.begin(asked, case.body, None, lambda answer, identity: told.set_result((whole(answer), identity)))
    return None if one is None else await told


async def awaited(lane: Lane, case: Case) -> Any:
    asked = lane.accept(case.path.encode(), case.headers)
    assert asked is not None
    return await lane.answer(asked, case.body, None)


def tallied(served: Served, cells: Sequence[int]) -> list[int]:
    """What is counted of a model by now; zeros before its first request."""
    if served.tally is None:
        return [0] * len(cells)
    served.tally.flush()
    return [served.tally._cells[cell] for cell in cells]


def counted(core: ServerCore) -> dict[str, Any]:
    """What is counted of each model by now."""
    metrics().flush()
    observed = {
        stage: REGISTRY.get_sample_value(f"request_{stage}_seconds_count", {"model_name": "m"}) for stage in STAGES
    }
    cells = {served.model.version: tallied(served, COUNTED) for served in core.served["m"]}
    return {**observed, **cells}


COUNTED = (tally.SUCCESSES, tally.FAILURES, tally.ROWS, tally.EXECUTIONS)


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, list) else value - (before.get(name) or 0) for name, value in after.items()
    }


class Lines(logging.Handler):
    """What is logged of requests, each line with the model and the request that it would name."""

    LOGGERS = ("mpserve.access", "mpserve.http.responses", "mpserve.http.streaming", "asyncio")

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = re.sub(r"[\d.]+ ms", "- ms", record.getMessage())
        self.lines.append((record.name, model_in_log.get(), request_id.get(), message))


@contextmanager
def logged() -> Iterator[list[tuple[str, str, str, str]]]:
    """Logger, model, request and words of each line that is logged of requests meanwhile."""
    handler = Lines()
    loggers = [logging.getLogger(name) for name in Lines.LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


async def outcome(case: Case, way: Callable[[Lane, Case], Any], access_log: bool = False) -> Any:
    """The answer to a request that goes one way, what is counted of it and what is logged until then; None: it cannot."""
    async with loaded(*case.models(), **case.options) as core:
        before = counted(core)
        with logged() as lines:
            told = await way(Lane(Dataplane(core), Accounts(access_log)), case)
            if told is None:
                return None
        answer, identity = told
        got = await sent(answer)
        assert core.row.in_flight == 0
        for served in core.served["m"]:
            await asyncio.wait_for(served.held.until_idle(), 10)
        assert identity
        named = [
            (name, model, given.replace(identity.decode(), "its own"), words) for name, model, given, words in lines
        ]
        return got, difference(before, counted(core)), named
