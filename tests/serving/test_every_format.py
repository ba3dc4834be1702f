"""The rules of every request hold in every format and for every kind of model: time, blame, counts, and its own numbers."""

import asyncio
import gzip
from typing import Any

import numpy as np
import pytest

from mpserve.errors import Code, DeadlineExceeded, MPServeError
from mpserve.protocol.codec import Encoded
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.inference.answered import answered
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.cases import each
from tests.formats import BINARY, FORMATS, PLAIN, Format, Headers
from tests.running import PATIENCE
from tests.serving.held import MANY, WAYS, AsyncBefore, AsyncBehind, InAsyncBatch, InThread, in_flight

X = np.array([[1.5, 2.5], [3.5, 4.5]])
SOON = 20_000
"""Microseconds."""


async def send(core: ServerCore, format: Format, headers: Headers, body: bytes) -> list[Any]:
    """The elements of the arrays in the answer, for each of its parts."""
    _, outcome = await asyncio.wait_for(answered(core, format.head(headers, "m"), body), PATIENCE)
    if isinstance(outcome, Encoded):
        return format.read(dict(outcome.fields or {}), outcome.body)
    return [elements for part in [part async for part in outcome] for elements in format.read({}, part)]


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
    durations = core.find("m").observed.stages["predict"]
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


SMALL, LARGE = (3, 4), (70, 120)
"""Shapes; a large answer has more than 64 kB in every format."""
LONG = {"timeout": 60_000_000}


class Reusing:
    """Twice the input and one, in the same memory each time, as ONNX Runtime's I/O binding and CUDA graphs do.

    A wrong answer with status 200 is the worst fault. An ``async def`` predict that waits after it has filled its array is the
    user's own fault, and not shown here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.zeros(100_000)

    def answer(self, x: Any) -> Any:
        y = self.memory[: x.size].reshape(x.shape)
        np.multiply(x, 2, out=y)
        np.add(y, 1, out=y)
        return y


class WithStages(InThread):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return payload

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return result


class AsyncAround(AsyncBefore, AsyncBehind): ...


class Parts(InThread):
    def predict(self, x: Any) -> Any:
        yield self.answer(x)
        yield self.answer(x + 1)


class Sdk(Reusing, Model):
    """A model of the kserve SDK: from a message, or V1's document, to a response around the array."""

    name = "m"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        x = np.array(payload["instances"], float) if isinstance(payload, dict) else payload.inputs[0].as_numpy()
        y = self.answer(x)
        return InferResponse(None, "m", [InferOutput("y", list(y.shape), "FP64", y)])


class SdkAsyncBehind(Sdk):
    postprocess = AsyncBehind.postprocess


class SdkSameResponse(SdkAsyncBehind):
    """Gives the same response each time, too."""

    def predict(self, payload: Any, headers: Any = None) -> Any:
        response = super().predict(payload)
        return vars(self).setdefault(f"{response.outputs[0].shape}", response)


class SdkOfArrays(Sdk):
    """Hands its array itself to the stage behind predict."""

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return super().predict(payload).outputs[0].as_numpy()

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        return InferResponse(None, "m", [InferOutput("y", list(result.shape), "FP64", result.copy())])


class SdkOfDicts(SdkOfArrays):
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"y": super().predict(payload)}

    async def postprocess(self, result: Any, headers: Any = None) -> Any:
        return await super().postprocess(result["y"])


async def check(core: ServerCore, format: Format, x: Any, parameters: dict[str, int], parts: int) -> None:
    given = await send(core, format, *format.write(x, parameters))
    assert len(given) == parts, format.name
    for number, elements in enumerate(given):
        right = (x.ravel() + number) * 2 + 1
        assert np.array_equal(elements, right), f"{format.name}: the answer is not of this request"


async def ask_all(model: Model, formats: list[Format], parts: int) -> None:
    """Every format of many clients at once, with a timeout and without, which takes another way to the model's thread."""
    assert formats
    random = np.random.default_rng(7)
    async with loaded(model) as core:
        await asyncio.gather(
            *(
                check(core, format, random.integers(0, 10**9, shape) / 8, parameters, parts)
                for shape, parameters in ((SMALL, {}), (LARGE, LONG), (SMALL, LONG), (LARGE, {}), (SMALL, {}))
                for format in formats
            )
        )


def reusing(way: type[InThread], batch_size: int | None = None) -> TensorModel:
    model: InThread = type(f"Reusing{way.__name__}", (Reusing, way), {"max_batch_size": batch_size})()
    model.go.release(MANY)
    return model


@each("way, batch_size", [
    *((way, None) for way in (InThread, WithStages, AsyncBefore, AsyncBehind, AsyncAround)),
    *((way, 500) for way in (InThread, WithStages, AsyncBehind, InAsyncBatch)),
])  # fmt: skip
async def test_each_client_gets_its_own_numbers(way: type[InThread], batch_size: int | None) -> None:
    await ask_all(reusing(way, batch_size), FORMATS, 1)


@each("kind", [Sdk, SdkAsyncBehind, SdkSameResponse, SdkOfArrays, SdkOfDicts])
async def test_each_client_of_an_sdk_model_gets_its_own_numbers(kind: type[Model]) -> None:
    await ask_all(kind(), FORMATS, 1)


async def test_each_part_has_its_own_numbers() -> None:
    await ask_all(reusing(Parts), [format for format in FORMATS if format.carries_parts], 2)
