"""The rules of every request hold in every format and for every kind of model: time, blame, counts."""

import asyncio
import gzip
import threading
from typing import Any

import numpy as np
import pytest

from mpserve.errors import Code, DeadlineExceeded, MPServeError
from mpserve.protocol.codec import Encoded
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.inference.answered import answered
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.cases import each
from tests.formats import BINARY, FORMATS, PLAIN, Format, Headers
from tests.running import PATIENCE

X = np.array([[1.5, 2.5], [3.5, 4.5]])
SOON = 20_000
"""Microseconds."""


class Declared(TensorModel):
    """Doubles, once it is let go; or raises."""

    name = "m"
    inputs = (Tensor("x", "FP64", (-1, -1)),)
    outputs = (Tensor("y", "FP64", (-1, -1)),)
    error: BaseException | None = None

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()

    def predict(self, x: Any) -> Any:
        assert self.go.wait(PATIENCE)
        return self.doubled(x)

    def doubled(self, x: Any) -> Any:
        if self.error is not None:
            raise self.error
        return x * 2


class Asynchronous(Declared):
    concurrency = 1

    async def predict(self, x: Any) -> Any:
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return self.doubled(x)


class Batched(Declared):
    max_batch_size = 8


class AsyncBatched(Asynchronous):
    concurrency = None
    max_batch_size = 8


class AsyncBehind(Declared):
    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


class AsyncBefore(Declared):
    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return payload


KINDS = [Declared, Asynchronous, Batched, AsyncBatched, AsyncBehind, AsyncBefore]


async def send(core: ServerCore, format: Format, headers: Headers, body: bytes) -> list[Any]:
    _, outcome = await answered(core, format.head(headers, "m"), body)
    assert isinstance(outcome, Encoded)
    return format.read(dict(outcome.fields or {}), outcome.body)


async def ask(core: ServerCore, format: Format, **parameters: Any) -> list[Any]:
    return await send(core, format, *format.write(X, parameters))


def with_an_escape(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """The same request, in which the name of the timeout is spelled with an escape."""
    if "content-encoding" in headers:
        body = gzip.decompress(body)
    body = body.replace(b'"timeout"', b'"time\\u006fut"')
    if BINARY in headers:
        headers = {**headers, BINARY: str(int(headers[BINARY]) + len("\\u006f") - 1)}
    return headers, gzip.compress(body) if "content-encoding" in headers else body


@each("kind", KINDS)
async def test_a_timeout_in_the_body_is_obeyed_however_it_is_spelled(kind: type[Declared]) -> None:
    model = kind()
    formats = [format for format in FORMATS if not format.name.startswith("V1")]
    async with loaded(model) as core:
        model.go.clear()
        holding = asyncio.ensure_future(ask(core, formats[0]))
        await asyncio.sleep(0.01)
        bodies = [(format, *format.write(X, {"timeout": SOON})) for format in formats]
        escaped = [(format, *with_an_escape(headers, body)) for format, headers, body in bodies if format.path]
        asked = bodies + escaped
        outcomes = await asyncio.gather(*(send(core, *each_body) for each_body in asked), return_exceptions=True)
        model.go.set()
        await holding
        await core.find("m").in_flight.until_idle()
        for (format, _, body), outcome in zip(asked, outcomes, strict=True):
            assert type(outcome) is DeadlineExceeded, (format.name, body, outcome)


@each("kind", KINDS)
@each("error", [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), StopIteration(), ValueError("bad")])
async def test_whatever_a_model_raises_is_its_failure_with_a_traceback_and_the_next_request_is_answered(
    kind: type[Declared], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    model = kind()
    async with loaded(model) as core:
        for format in PLAIN[::4]:
            caplog.clear()
            model.error = error
            with pytest.raises(MPServeError) as caught:
                await asyncio.wait_for(ask(core, format), PATIENCE)
            assert caught.value.code is Code.MODEL_FAILED, format.name
            assert (caplog.text.count("the model failed"), "in doubled" in caplog.text) == (1, True), format.name
            model.error = None
            [y] = await asyncio.wait_for(ask(core, format), PATIENCE)
            assert y.tolist() == (X * 2).ravel().tolist()


def observed(core: ServerCore) -> int:
    """How often the histogram of predict was given a value since it was last asked."""
    durations = core.find("m").durations["predict"]
    count = len(durations.noted)
    durations.flush()
    return count


@each("kind", KINDS)
async def test_each_request_is_counted_once_and_alike_in_every_format(kind: type[Declared]) -> None:
    async with loaded(kind()) as core:
        observed(core)
        before = [0] * 4
        for format in FORMATS:
            await ask(core, format)
            await asyncio.sleep(0)
            [told] = Statistics(core).told("m")
            stats = told["inference_stats"]
            rows, executions = told["inference_count"], told["execution_count"]
            now = [stats["success"]["count"], rows, executions, stats["compute_infer"]["count"]]
            rows_asked = 1 if format.name.startswith("generate") else 2  # a flat list is one row
            assert [new - old for new, old in zip(now, before, strict=True)] == [1, rows_asked, 1, 1], format.name
            spans = [stats[span]["ns"] for span in ("queue", "compute_input", "compute_infer", "compute_output")]
            assert min(spans) > 0
            assert sum(spans) <= stats["success"]["ns"]
            assert observed(core) == 1, format.name
            before = now
