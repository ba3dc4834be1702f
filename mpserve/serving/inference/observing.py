"""What observes requests: traces and the payload log. They choose their requests before these begin.

``begin`` asks the observer for the object of a request, if there is an observer (``traced_request``).
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mpserve.serving.extensions.trace_settings import TraceSampler
from mpserve.serving.inference.payload_log import LoggedReply, PayloadLog
from mpserve.serving.inference.payload_sinks import sink_of
from mpserve.serving.inference.request import InferenceRequest
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.serving.inference.traced_request import JoinedRequest, TracedRequest
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import TRACES
from mpserve.telemetry import tracing

if TYPE_CHECKING:
    from mpserve.telemetry.tracer import Tracer

logger = logging.getLogger(__name__)

FLUSH = 0.5
"""Seconds in which the receivers of traces and of the payload log must take what is left at the end of the worker."""


def begin_observing(core: ServerCore) -> None:
    """In a worker, after the fork and before the load: observe the requests, if the environment asks for traces, or the options
    for a payload log.
    """
    tracer = tracing.begin(core.row.slot)
    if tracer is not None:
        core.observer = Observer(core, tracer).begin
    log = _payload_log(core)
    if log is not None:
        core.observer = partial(_begin_logged, log, core.observer or InferenceRequest)
    if core.observer is not None:
        core.finish_observing = partial(_finish, core, log)


def _payload_log(core: ServerCore) -> PayloadLog | None:
    url = core.settings.log_url
    if url is None:
        return None
    try:
        return PayloadLog(core.settings, sink_of(url, core.row.slot))
    except OSError as error:  # requests can be answered without it
        logger.error("there is no payload log: %s: %s", url, error)
        return None


def _begin_logged(
    log: PayloadLog,
    make: Callable[..., InferenceRequest],
    core: ServerCore,
    head: RequestHead,
    body: bytes,
    reply: Reply,
) -> InferenceRequest:
    if not log.samples():
        return make(core, head, body, reply)
    request = make(core, head, body, LoggedReply(reply, log))
    log.note_request(request.identity, head, body)
    return request


async def _finish(core: ServerCore, log: PayloadLog | None) -> None:
    """Send what is left. A receiver that does not answer must not hold up the end."""
    work = [core.helper.run(tracing.flush), *(() if log is None else (log.finish(),))]
    try:
        await asyncio.wait_for(asyncio.gather(*work), FLUSH)
    except asyncio.TimeoutError:
        logger.warning("the last spans or payloads were not sent within %g s and are lost", FLUSH)


class Observer:
    """Makes the requests of a server that traces."""

    def __init__(self, core: ServerCore, tracer: "Tracer") -> None:
        self._tracer = tracer
        self._field, *self._others = tracer.fields
        self._sampler = TraceSampler(core, tracer)
        self._cells = core.board.cells
        self._known = self._cells[TRACES]
        self._left = self._sampler.pause()  # requests before the next one that may be traced

    def begin(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply) -> InferenceRequest:
        """The object of a request that has come. One that is not traced pays for a look for the header, a look at a number in
        shared memory, and a count.
        """
        headers = head.headers
        if self._field in headers or (self._others and not headers.keys().isdisjoint(self._others)):
            request = self._joined(core, head, body, reply)
            if request is not None:
                return request
        if self._left > 0 and self._cells[TRACES] == self._known:
            self._left -= 1
            return InferenceRequest(core, head, body, reply)
        return self._drawn(core, head, body, reply)

    def _follow(self) -> None:
        if self._cells[TRACES] != self._known:
            self._known = self._cells[TRACES]
            self._sampler.follow()
            self._left = self._sampler.pause()

    def _drawn(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply) -> InferenceRequest:
        self._follow()
        if self._left > 0:
            self._left -= 1
            return InferenceRequest(core, head, body, reply)
        self._left = self._sampler.pause()
        if not self._sampler.samples(head.model):
            return InferenceRequest(core, head, body, reply)
        return TracedRequest(core, head, body, reply, self._tracer, self._tracer.begin())

    def _joined(self, core: ServerCore, head: RequestHead, body: bytes, reply: Reply) -> InferenceRequest | None:
        """A request in the trace of its client; None if the headers cannot be read."""
        context, parent = self._tracer.extract(head.headers)
        if not parent.is_valid:
            return None
        self._follow()
        trace = self._tracer.join(context, parent, self._sampler.follows(head.model, parent))
        if trace.span is None:
            return JoinedRequest(core, head, body, reply, trace)
        return TracedRequest(core, head, body, reply, self._tracer, trace)
