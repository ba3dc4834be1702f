"""The rules of every request hold in every format and for every kind of model: time, blame, counts."""

import asyncio
import gzip
from typing import Any

import numpy as np
import pytest

from mpserve.errors import Code, DeadlineExceeded, MPServeError
from mpserve.protocol.codec import Encoded
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.inference.answered import answered
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.cases import each
from tests.formats import BINARY, FORMATS, PLAIN, Format, Headers
from tests.running import PATIENCE
from tests.serving.held import MANY, WAYS, InThread, in_flight

X = np.array([[1.5, 2.5], [3.5, 4.5]])
SOON = 20_000
"""Microseconds."""


async def send(core: ServerCore, format: Format, headers: Headers, body: bytes) -> list[Any]:
    _, outcome = await asyncio.wait_for(answered(core, format.head(headers, "m"), body), PATIENCE)
    assert isinstance(outcome, Encoded)
    return format.read(dict(outcome.fields), outcome.body)


async def ask(core: ServerCore, format: Format) -> list[Any]:
    return await send(core, format, *format.write(X, {}))


def with_an_escape(headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    """The same request, in which the name of the timeout is spelled with an escape."""
    is_zipped = "content-encoding" in headers
    body = (gzip.decompress(body) if is_zipped else body).replace(b'"timeout"', b'"time\\u006fut"')
    if BINARY in headers:
        headers = {**headers, BINARY: str(int(headers[BINARY]) + len("\\u006f") - 1)}
    return headers, gzip.compress(body) if is_zipped else body


@each("kind", WAYS)
async def test_a_timeout_in_the_body_is_obeyed_however_it_is_spelled(kind: type[InThread]) -> None:
    model = kind()
    formats = [format for format in FORMATS if not format.name.startswith("V1")]
    async with in_flight(model) as core:
        holding = asyncio.ensure_future(ask(core, formats[0]))
        await model.has_begun()
        bodies = [(format, *format.write(X, {"timeout": SOON})) for format in formats]
        bodies += [(format, *with_an_escape(headers, body)) for format, headers, body in bodies if format.path]
        outcomes = await asyncio.gather(*(send(core, *each_body) for each_body in bodies), return_exceptions=True)
        model.go.release(MANY)
        await holding
        for (format, _, body), outcome in zip(bodies, outcomes, strict=True):
            assert type(outcome) is DeadlineExceeded, (format.name, body, outcome)


@each("kind", WAYS)
@each("error", [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), StopIteration(), ValueError("bad")])
async def test_whatever_a_model_raises_is_its_failure_with_a_traceback_and_the_next_request_is_answered(
    kind: type[InThread], error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(given: Any) -> None:
        raise error

    model = kind()
    model.go.release(MANY)
    async with loaded(model) as core:
        for format in PLAIN[::4]:
            caplog.clear()
            model.answer = fail  # type: ignore[method-assign]
            with pytest.raises(MPServeError) as caught:
                await ask(core, format)
            assert caught.value.code is Code.MODEL_FAILED, format.name
            assert (caplog.text.count("the model failed"), "in fail" in caplog.text) == (1, True), format.name
            del model.answer
            [y] = await ask(core, format)
            assert y.tolist() == X.ravel().tolist()


def observed(core: ServerCore) -> int:
    """How often the histogram of predict was given a value since it was last asked."""
    durations = core.find("m").durations["predict"]
    count = len(durations.noted)
    durations.flush()
    return count


@each("kind", WAYS)
async def test_each_request_is_counted_once_and_alike_in_every_format(kind: type[InThread]) -> None:
    model = kind()
    model.go.release(MANY)
    async with loaded(model) as core:
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
