"""Small models that the gRPC front end is asked for."""

import asyncio
from typing import Any

from mpserve import (
    InferenceError,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    InvalidInput,
    Model,
    Tensor,
    TensorModel,
)


def echoed(given: InferInput) -> InferOutput:
    return InferOutput(given.name, given.shape, given.datatype, given.as_numpy())


class Echo(Model):
    """Answers with its inputs, and keeps what it was last asked."""

    name = "echo"
    request: InferRequest
    headers: dict[str, str]

    def predict(self, payload: InferRequest, headers: dict[str, str]) -> InferResponse:
        self.request, self.headers = payload, headers
        return InferResponse(
            None, self.name, [echoed(given) for given in payload.inputs], parameters=payload.parameters
        )


class Double(TensorModel):
    name = "double"
    platform = "numpy"
    inputs = (Tensor("x", "FP32", [-1]),)
    outputs = (Tensor("y", "FP32", [-1]),)

    def predict(self, x: Any) -> Any:
        return x * 2


class Raising(Model):
    name = "raising"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        raise {
            "error": RuntimeError("boom"),
            "inference": InferenceError("bad infer"),
            "invalid": InvalidInput("expected a cat"),
            "missing": NotImplementedError("no such kernel"),
            "long": InvalidInput("ü" * 10000),
        }[payload.parameters["raise"]]


class Answering(Model):
    """Answers with whatever it was made with."""

    name = "answering"

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return self.answer


class Heading(Model):
    """Sets response headers."""

    def __init__(self, **headers: str) -> None:
        super().__init__("heading", return_response_headers=True)
        self.headers = headers

    def predict(self, payload: InferRequest, headers: Any, response_headers: dict[str, str]) -> InferResponse:
        response_headers.update(self.headers)
        return InferResponse(None, self.name, [])


class Held(Model):
    """Holds each request until it is let go, and counts those that were cancelled."""

    name = "held"

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Semaphore(0)
        self.let_go = asyncio.Event()
        self.cancelled = 0

    async def predict(self, payload: InferRequest, headers: Any = None) -> InferResponse:
        self.begun.release()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return InferResponse(None, self.name, [])
