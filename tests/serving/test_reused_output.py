"""A model that returns the same array each time answers each client with its own numbers, in every format.

ONNX Runtime's I/O binding, CUDA graphs and preallocated arrays do so. A wrong answer with status 200 is the worst fault.
An ``async def`` predict that waits after it has filled its array is the user's own fault, and not shown here.
"""

import asyncio
from typing import Any

import numpy as np

from mpserve.protocol.codec import Encoded
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.serving.inference.answered import answered
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.cases import each
from tests.formats import FORMATS, Format
from tests.serving.held import MANY, AsyncBefore, AsyncBehind, InAsyncBatch, InThread

SMALL, LARGE = (3, 4), (70, 120)
"""Shapes; a large answer has more than 64 kB in every format."""
TIMEOUT = {"timeout": 60_000_000}


class Reusing:
    """Twice the input and one, in the same memory each time."""

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
    headers, body = format.write(x, parameters)
    _, outcome = await answered(core, format.head(headers, "m"), body)
    if isinstance(outcome, Encoded):
        given = format.read(dict(outcome.fields), outcome.body)
    else:
        given = [each_part for part in [part async for part in outcome] for each_part in format.read({}, part)]
    expected = [(x.ravel() + number) * 2 + 1 for number in range(parts)]
    assert len(given) == parts, format.name
    for got, right in zip(given, expected, strict=True):
        assert np.array_equal(got, right), f"{format.name}: the answer is not of this request"


async def ask_all(model: Model, formats: list[Format], parts: int) -> None:
    """Every format of many clients at once, with a timeout and without, which takes another way to the model's thread."""
    random = np.random.default_rng(7)
    async with loaded(model) as core:
        await asyncio.gather(
            *(
                check(core, format, random.integers(0, 10**9, shape) / 8, parameters, parts)
                for shape, parameters in ((SMALL, {}), (LARGE, TIMEOUT), (SMALL, TIMEOUT), (LARGE, {}), (SMALL, {}))
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
