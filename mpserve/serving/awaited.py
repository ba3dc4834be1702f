"""A plain request that a task waits for: from arrays to the bytes of its answer, whichever way the model is asked.

It is ``Dataplane.run`` without messages: let in, timed, counted and blamed as there. To a synchronous model it is one hop to
its thread, where it is answered and written in one go. It knows no front end.
"""

import asyncio
import contextvars
import math
from collections.abc import Awaitable

from mpserve.errors import ModelNotReady, MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol.datatypes import NonFinite
from mpserve.serving import express
from mpserve.serving.batch import Parts
from mpserve.serving.batching import Batcher
from mpserve.serving.dataplane import Dataplane, InParts, stream
from mpserve.serving.express import Given
from mpserve.serving.served import Served
from mpserve.serving.stream import ModelStream, blamed
from mpserve.serving.tally import QUEUE
from mpserve.serving.visit import Visit


async def answered(
    dataplane: Dataplane, served: Served, given: Given[bytes], within: float = math.inf
) -> bytes | ModelStream:
    """The answer to a plain request to ``served.express``, for which the client waits ``within`` so many seconds.

    Raises:
        MPServeError: as ``Dataplane.run``.
    """
    if not served.model.ready:
        raise ModelNotReady(served.label)
    admission = served.admission
    within = admission.admit(None, within)
    visit = dataplane.visit(served)
    model_in_log.set(served.label)
    try:
        work = _work(visit, given, dataplane.core.settings.nonfinite)
        if within != math.inf:
            work = admission.until(within, work, visit)
        answer = await work
        if isinstance(answer, InParts):
            return stream(visit, "predict", answer.payload, answer.parts, answer.deliveries, within)
    except BaseException as error:
        visit.end()
        if isinstance(error, MPServeError) or not isinstance(error, Exception):
            raise
        raise blamed(error, served.model.name, "predict") from error
    visit.end()
    if admission.learns:
        admission.note(visit, visit.place)
    return answer


def _work(visit: Visit, given: Given[bytes], nonfinite: NonFinite) -> Awaitable[bytes | InParts]:
    pipeline = visit.served.pipeline
    if not pipeline.waits("predict"):
        return visit.served.executor.run(_in_thread, visit, given, nonfinite)
    if pipeline.batcher is not None:
        return _in_batch(pipeline.batcher, visit, given, nonfinite)
    return _on_loop(visit, given, nonfinite)


def _in_thread(visit: Visit, given: Given[bytes], nonfinite: NonFinite) -> bytes | InParts:
    visit.lap(QUEUE)
    try:
        return express.answer(visit, given, nonfinite)
    except InParts as found:
        return found


async def _on_loop(visit: Visit, given: Given[bytes], nonfinite: NonFinite) -> bytes | InParts:
    """As ``_in_thread``, of a model whose predict is ``async def``."""
    async with visit.served.pipeline.gate:
        visit.lap(QUEUE)
        try:
            return await express.answer_async(visit, given, nonfinite)
        except InParts as found:
            return found


async def _in_batch(batcher: Batcher, visit: Visit, given: Given[bytes], nonfinite: NonFinite) -> bytes:
    future: asyncio.Future[Parts] = asyncio.get_running_loop().create_future()
    form, model, arrays, request = given
    form.count(visit, arrays[0])
    batcher.check(arrays)
    batcher.enter(arrays, visit, future, contextvars.copy_context().copy)
    outputs = await future
    visit.is_answered = True  # as in the ordinary way, also if it cannot be written
    return form.write(request, model, outputs, nonfinite)
