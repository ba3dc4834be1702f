"""The payload log: sampled requests and their answers go to a sink as events, in the form of KServe's logger.

No request waits for the sink. A thread sends the events of a bounded queue; an event without room is dropped, and counted.
"""

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timezone
from random import Random
from typing import Any

import orjson

from mpserve.config.settings import Settings
from mpserve.errors import MPServeError
from mpserve.protocol.codec import Encoded
from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.payload_sinks import REQUEST, RESPONSE, Event, Sink
from mpserve.serving.inference.request_head import Reply, RequestHead
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)

MOST_EVENTS, MOST_BYTES = 1000, 64 * 1024**2
"""What may wait in a worker."""
KEPT = ("content-encoding", "inference-header-content-length")
"""Headers without which nobody can read a body; they are in the attribute ``metadata``."""
QUIET = 10.0  # seconds after a warning in which no other is logged


class PayloadLog:
    """The payload log of one worker."""

    def __init__(self, settings: Settings, sink: Sink) -> None:
        self._sink = sink
        self._share = settings.log_sampling
        self._requests, self._responses = (settings.log_mode in ("all", kind) for kind in ("request", "response"))
        given = dict(part.split("=", 1) for part in (settings.log_attributes or "").split(",") if part)
        self._attributes = {"specversion": "1.0", "source": "mpserve", **given}
        self._random = Random().random  # its own: a model may seed that of all workers alike
        self._queue: deque[Event] = deque()
        self._bytes = 0
        self._executor = Executor("payload log")
        self._sending: asyncio.Future[None] | None = None
        self._warned = -QUIET

    def samples(self) -> bool:
        """Whether to log a request."""
        return self._random() < self._share

    def note_request(self, identity: str, head: RequestHead, body: bytes) -> None:
        if self._requests:
            self._add(identity, REQUEST, head.headers.get("content-type"), head.headers, body)

    def note_answer(self, identity: str, encoded: Encoded) -> None:
        if self._responses:
            fields = {name.lower(): value for name, value in (encoded.fields or {}).items()}
            self._add(identity, RESPONSE, encoded.content_type, fields, encoded.body)

    def _add(self, identity: str, kind: str, content_type: str | None, headers: Mapping[str, str], data: Any) -> None:
        if len(self._queue) >= MOST_EVENTS or self._bytes + len(data) > MOST_BYTES:
            metrics().payloads.labels("dropped").inc()
            return
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        kept = {name: [headers[name]] for name in KEPT if name in headers}
        own = {"id": identity, "type": kind, "time": now, "metadata": orjson.dumps(kept).decode()}
        self._queue.append(Event({**self._attributes, **own}, content_type, bytes(data)))
        self._bytes += len(data)
        if self._sending is None:
            self._send_on()

    def _send_on(self, done: object = None) -> None:
        """Let the thread send what waits; on the event loop."""
        self._sending = None
        if self._queue:
            self._sending = asyncio.get_running_loop().create_future()
            self._sending.add_done_callback(self._send_on)
            self._executor.submit(contextvars.Context(), self._send_all, self._sending)

    def _send_all(self) -> None:
        """In the thread: send all that waits now."""
        for _ in range(len(self._queue)):
            event = self._queue.popleft()
            outcome = "sent"
            try:
                self._sink.send(event)
            except Exception as error:
                outcome = "failed"
                self._warn(error)
            metrics().payloads.labels(outcome).inc()
        self._bytes = sum([len(event.data) for event in list(self._queue)])

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned >= QUIET:
            self._warned = time.monotonic()
            logger.warning("the payload log loses events (mpserve_payloads_total counts them): %r", error)

    async def finish(self) -> None:
        """Wait until all is sent, and end the thread."""
        try:
            while self._sending is not None:
                await asyncio.wait({self._sending})
                await asyncio.sleep(0)
            self._sink.close()
        finally:
            self._executor.close()


class LoggedReply:
    """A reply whose whole answer is logged."""

    def __init__(self, reply: Reply, log: PayloadLog) -> None:
        self._reply = reply
        self._log = log

    def finish(self, request: Any, encoded: Encoded) -> None:
        self._reply.finish(request, encoded)
        self._log.note_answer(request.identity, encoded)

    def stream(self, request: Any, parts: ModelStream) -> None:
        self._reply.stream(request, parts)

    def fail(self, request: Any, fault: MPServeError) -> None:
        self._reply.fail(request, fault)
