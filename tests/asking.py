"""Requests to the models of a core, without a format: a payload or a message in, what the model answered out."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from mpserve.errors import NotSupported
from mpserve.protocol.codec import NO_FIELDS, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.messages import InferRequest
from mpserve.protocol.v1.codec import document_inputs
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.inference.answered import answered
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.repository.core import ServerCore


class Untouched:
    """A codec that passes on what it is given, and keeps what comes out."""

    parts = Parts.MANY
    part_fields = NO_FIELDS

    def __init__(self, payload: Any) -> None:
        self.payload = payload
        self.answers: list[Any] = []

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        if isinstance(self.payload, InferRequest):
            return Inputs.of(self.payload)
        return document_inputs(self.payload)

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        return Encoded(self.write_part(inputs, outputs))

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        self.answers.append(outputs.result if outputs.tensors is None else outputs.response(inputs))
        return b"."

    def last_part(self, fault: bytes) -> bytes | None:
        return None

    def refusal(self, model_name: str) -> NotSupported:
        raise AssertionError


class Asker:
    """Asks the models of one core."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.statistics = Statistics(core)

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: dict[str, str], within: float = math.inf
    ) -> tuple[Any, dict[str, str]]:
        """What the model answered, or its parts, and the response headers that it set."""
        codec = Untouched(payload)
        head = RequestHead(name, version, verb, codec, headers)
        body = str(getattr(payload, "parameters", "")).encode()  # in which a scheduler looks for a timeout
        request, outcome = await answered(self.core, head, body, within)
        if isinstance(outcome, Encoded):
            return codec.answers[0], request.response_headers or {}
        return PartsOf(outcome, codec), request.response_headers or {}


class PartsOf(AsyncIterator[Any]):
    """The parts of an answer as the model gave them."""

    def __init__(self, stream: ModelStream, codec: Untouched) -> None:
        self.stream = stream
        self.codec = codec

    async def __anext__(self) -> Any:
        await anext(self.stream)
        return self.codec.answers.pop(0)

    async def aclose(self) -> None:
        await self.stream.aclose()


def ask(core: ServerCore, name: str, payload: Any, **more: Any) -> "asyncio.Task[Any]":
    """The answer of a model, as a task."""

    async def run() -> Any:
        return (await Asker(core).run("predict", name, None, payload, {}, **more))[0]

    return asyncio.ensure_future(run())
