"""An answer in parts to one request: opened once its first part is there, then handed out, and counted at its end."""

import asyncio
import contextvars
from typing import Any, Protocol

from mpserve.errors import DeadlineExceeded, MPServeError
from mpserve.protocol.codec import Encoded, Inputs, Outputs, Parts
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.stream import ModelStream, Source
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.serving.inference.requested_outputs import Treatments, select
from mpserve.serving.models.fit import fit_outputs


class Streamed(Protocol):
    """The request that is answered in parts."""

    context: contextvars.Context
    head: RequestHead
    inputs: Inputs | None
    instance: ModelInstance
    reply: Reply
    requested: Treatments
    seconds: float

    def outputs_of(self, result: Any) -> Outputs:
        """What the model has given, completed by what only the request knows."""

    def blame(self, error: BaseException) -> MPServeError:
        """What the client is told of a failure, which is logged."""

    def leave_stream(self, is_whole: bool) -> None:
        """The model is held no longer."""


class AnswerInParts:
    """The answer of a model that has returned an iterator. It begins with its construction, on the event loop."""

    def __init__(self, request: Streamed, source: Source) -> None:
        instance = request.instance
        self.context = request.context
        self.label = instance.label
        self._request = request
        self._stream = ModelStream(self, source, instance.executor, instance.gate, request.seconds)
        instance.streams.add(self._stream)
        self._opening = request.context.copy().run(asyncio.ensure_future, self._open())

    def cancel(self) -> None:
        """Nobody is there for the answer any more."""
        self._stream.close()

    async def _open(self) -> None:
        """Hand out the parts once the first is there: a failure until then is answered as any other."""
        request, stream = self._request, self._stream
        try:
            if request.head.codec.parts is Parts.ONE:
                encoded = await self._only_part()
                request.reply.finish(request, encoded)
            else:
                await stream.prime()
                request.reply.stream(request, stream)
        except MPServeError as fault:
            await stream.aclose()
            request.reply.fail(request, fault)

    async def _only_part(self) -> Encoded:
        """The one part of an answer, as a whole answer."""
        codec, found = self._request.head.codec, []
        async for part in self._stream:
            found.append(part)
            if len(found) > 1:
                break
        await self._stream.aclose()
        if len(found) != 1:
            raise codec.refusal(self._request.head.model)
        return Encoded(found[0], None, codec.part_fields)

    # What the stream asks

    def encode_part(self, part: Any) -> bytes:
        """The bytes of a part, in memory of its own."""
        request, instance = self._request, self._request.instance
        inputs = request.inputs
        assert inputs is not None
        outputs = request.outputs_of(part)
        if instance.stages[request.head.verb].gives_tensors:
            outputs = outputs._replace(tensors=fit_outputs(instance.model_outputs, part))
        if inputs.requested:
            outputs = select(inputs, outputs, request.requested)
        return request.head.codec.write_part(inputs, outputs)

    def blame(self, error: BaseException) -> MPServeError:
        """What the client is told of a failure, which is logged."""
        return self._request.blame(error)

    def late(self, seconds: float) -> DeadlineExceeded:
        """What the client is told where the first part was not there in time."""
        return self._request.instance.admission.late(seconds)

    def stream_ended(self, is_whole: bool) -> None:
        """The answer has come to its end, or was cut short."""
        self._request.instance.streams.discard(self._stream)
        self._request.leave_stream(is_whole)


def close_unread(source: Source, context: contextvars.Context) -> None:
    """Close an iterator that nobody has begun to read; an asynchronous one ends by itself."""
    close = getattr(source, "close", None)
    if close is not None:
        context.copy().run(close)
