"""An answer in parts to one request: handed out once its first part is there, and counted at its end."""

import asyncio
import contextvars
from typing import Any, Protocol

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Encoded, Inputs, Outputs, Parts
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.stream import ModelStream, Source
from mpserve.serving.fitting.fit import fit_outputs
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.serving.inference.requested_outputs import Treatments, select


class Streamed(Protocol):
    """The request that is answered in parts."""

    context: contextvars.Context
    durations: list[int]
    head: RequestHead
    inputs: Inputs | None
    instance: ModelInstance
    reply: Reply
    requested: Treatments
    seconds: float

    def outputs_of(self, result: Any) -> Outputs: ...
    def blame(self, error: BaseException) -> MPServeError: ...
    def leave_stream(self, is_whole: bool) -> None: ...


class AnswerInParts:
    """The answer of a model that has returned an iterator. The answer begins at once, on the event loop."""

    def __init__(self, request: Streamed, source: Source) -> None:
        instance = request.instance
        self.context = request.context
        self.label = instance.label
        self.fault: MPServeError | None = None  # what has ended it
        self.late = instance.admission.late
        self._request = request
        self._stream = ModelStream(self, source, instance.executor, instance.gate, request.seconds)
        instance.streams.add(self._stream)
        if instance.admission.priority_queue is not None:
            instance.admission.priority_queue.leave(request)  # others are answered between two parts
        self._opening = request.context.copy().run(asyncio.ensure_future, self._open())

    def blame(self, error: BaseException) -> MPServeError:
        self.fault = self._request.blame(error)
        return self.fault

    def cancel(self) -> None:
        self._stream.close()

    async def _open(self) -> None:
        """Hand out the parts once the first part is there: an earlier failure is answered like any other."""
        request, stream = self._request, self._stream
        try:
            if request.head.codec.parts is Parts.ONE:
                encoded = await self._only_part()
                request.reply.finish(request, encoded)
            else:
                await stream.prime()
                request.reply.stream(request, stream)
        except MPServeError as fault:
            self.fault = fault
            await stream.aclose()
            request.reply.fail(request, fault)

    async def _only_part(self) -> Encoded:
        codec, parts = self._request.head.codec, []
        async for part in self._stream:
            parts.append(part)
            if len(parts) > 1:
                break
        if len(parts) != 1:
            raise codec.refusal(self._request.head.model)
        await self._stream.aclose()
        return Encoded(parts[0], None, codec.part_fields)

    def encode_part(self, part: Any) -> bytes:
        request, instance = self._request, self._request.instance
        inputs = request.inputs
        assert inputs is not None
        outputs = request.outputs_of(part)
        if instance.stages[request.head.verb].gives_tensors:
            outputs.tensors = fit_outputs(instance.model_outputs, part)
        if inputs.requested:
            select(inputs, outputs, request.requested)
        return request.head.codec.write_part(inputs, outputs)

    def stream_ended(self, is_whole: bool) -> None:
        request, instance = self._request, self._request.instance
        instance.streams.discard(self._stream)
        if is_whole and instance.admission.learns:
            instance.admission.note_stream(request.durations, self._stream.mean_step)
        request.leave_stream(is_whole)


def close_unread(source: Source, context: contextvars.Context) -> None:
    """Close an iterator that was never read; an asynchronous iterator needs no close."""
    close = getattr(source, "close", None)
    if close is not None:
        context.copy().run(close)
