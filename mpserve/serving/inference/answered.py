"""An inference request that a task awaits, for ASGI endpoints and gRPC calls."""

import asyncio
import math

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest, begin
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.inference.traced_request import JoinedRequest
from mpserve.serving.repository.core import ServerCore


async def answered(
    core: ServerCore, head: RequestHead, body: bytes, within: float = math.inf
) -> tuple[InferenceRequest, Encoded | ModelStream]:
    """Begin a request, and await its answer. A task that is cancelled cancels its request.
    Raises MPServeError if the request fails; the failure has been logged.
    """
    reply = Awaited()
    request = begin(core, head, body, reply, within)
    if core.observer is not None and isinstance(request, JoinedRequest):
        request.trace.name_in_log()  # in the lines of the task, such as that of the access log
    try:
        return request, await reply.future
    except asyncio.CancelledError:
        request.cancel()
        raise


class Awaited:
    """A reply whose ``future`` a task awaits."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Encoded | ModelStream] = asyncio.get_running_loop().create_future()

    def finish(self, request: InferenceRequest, encoded: Encoded) -> None:
        if not self.future.done():
            self.future.set_result(encoded)

    def stream(self, request: InferenceRequest, parts: ModelStream) -> None:
        if self.future.done():
            parts.close()
        else:
            self.future.set_result(parts)

    def fail(self, request: InferenceRequest, fault: MPServeError) -> None:
        if not self.future.done():
            self.future.set_exception(fault)
