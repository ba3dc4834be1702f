"""The models of the kserve SDK's own tests, in our words: they answer what those answer."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pandas as pd

from mpserve import InferOutput, InferRequest, InferResponse, Model
from mpserve.compat.payloads import get_predict_input, get_predict_response


class Dummy(Model):
    """Gives back its first input, the request's parameters and the input's."""

    name = "TestModel"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        if not isinstance(payload, InferRequest):
            return {"predictions": payload.get("inputs", payload.get("instances"))}
        response = get_predict_response(payload, get_predict_input(payload), self.name)
        response.parameters = payload.parameters
        response.outputs[0].parameters = payload.inputs[0].parameters
        return response

    explain = predict


class Unready(Dummy):
    """Is loaded and never ready."""

    ready = property(lambda self: False, lambda self, value: None)  # type: ignore[assignment]


class Reluctant(Dummy):
    """Can be loaded once."""

    def load(self) -> bool:
        return not self.loaded


class Columns(Model):
    """Answers with a column per output, flat, and with the request's parameters but for those of the binary extension."""

    def columns(self, request: InferRequest) -> dict[str, Any]:
        raise NotImplementedError

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        frame = pd.DataFrame({name: array.flatten() for name, array in self.columns(payload).items()})
        response = get_predict_response(payload, frame, self.name)
        response.parameters = {
            name: value for name, value in (payload.parameters or {}).items() if name != "binary_data_output"
        }
        return response


class FP16Output(Columns):
    name = "FP16OutputModel"

    def columns(self, request: InferRequest) -> dict[str, Any]:
        array = request.get_input_by_name("fp32_input").as_numpy()
        return {"fp16_output": array.astype(np.float16), "fp32_output": array}


class FP16Input(Columns):
    name = "FP16InputModel"

    def columns(self, request: InferRequest) -> dict[str, Any]:
        array = request.get_input_by_name("fp16_input").as_numpy()
        return {
            "str_output": request.get_input_by_name("str_input").as_numpy(),
            "fp32_output": array.astype(np.float32),
        }


class DateTime(Model):
    """Answers with the time, as an object of Python's."""

    name = "DateTimeModel"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        now = datetime.datetime.now(tz=datetime.timezone.utc)
        if not isinstance(payload, InferRequest):
            return {"predictions": [now]}
        output = InferOutput("output-0", [1], "BYTES")
        output.set_data_from_numpy(np.array([now], dtype=object), binary_data=False)
        return InferResponse("made-up", self.name, [output])


class Avro(Model):
    """Takes an Avro record of a text, an optional integer and an optional text."""

    name = "TestModel"

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        expected = {"ce-specversion": "1.0", "ce-source": "https://example.com/event-producer",
                    "ce-type": "com.example.sampletype1", "ce-content-type": "application/avro"}  # fmt: skip
        assert expected.items() <= headers.items()
        rest = memoryview(payload)
        fields = []
        for read, optional in ((_text, False), (_number, True), (_text, True)):
            if optional:
                branch, rest = _number(rest)
                assert branch == 0
            field, rest = read(rest)
            fields.append(field)
        return fields

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": [payload]}


def _number(rest: memoryview) -> tuple[int, memoryview]:
    """A number of one byte (Avro 1.11, "Binary Encoding": zig-zag)."""
    return (rest[0] >> 1) ^ -(rest[0] & 1), rest[1:]


def _text(rest: memoryview) -> tuple[str, memoryview]:
    size, rest = _number(rest)
    return bytes(rest[:size]).decode(), rest[size:]


class Stream(Model):
    """Gives one text ten times."""

    name = "TestModel"

    async def predict(self, payload: Any, headers: Any = None) -> AsyncIterator[bytes]:
        return _texts()


async def _texts() -> AsyncIterator[bytes]:
    for _ in range(10):
        yield b"some streamed data"
        await asyncio.sleep(0)
