"""Makes spans and sends them: the only module that knows OpenTelemetry. Importing it needs ``mpserve[otel]``.

A span of ours is made when it has ended, from times that were measured anyway, and in the bytes in which it is sent. So a
request that is not traced costs a count. The provider is for spans that the user's code makes, and for the sampling of those.
"""

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from random import Random
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from mpserve.telemetry import otlp
from mpserve.telemetry.logging import trace_id as trace_in_log
from mpserve.telemetry.otlp import Attributes, ids_of
from mpserve.version import VERSION

logger = logging.getLogger(__name__)

EXPORTER, TESTED = "opentelemetry-exporter-otlp-proto-http", "1.45.2"
SAMPLED, NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)
ALL = 1 << 64
"""A trace is sampled if the lower 64 bits of its id are less than a share of this number, in every server of OpenTelemetry."""
BESIDE_A_TRACE = frozenset({"tracestate", "baggage"})
"""Headers that mean nothing without the header of the trace itself."""


class Ended:
    """Spans of one trace that have ended, in the bytes of OTLP. The SDK takes it for a span."""

    __slots__ = ("context", "data")

    def __init__(self, context: SpanContext, data: bytes) -> None:
        self.context = context  # asked by the SDK, which drops what is not sampled
        self.data = data


class Exporter(SpanExporter):
    """Sends spans of ours and of the user's code by the SDK's exporter, which knows the variables, TLS and retries.
    Raises ValueError: the exporter that is installed differs inside from the one that was read.
    """

    def __init__(self, resource: Resource) -> None:
        self._sdk = OTLPSpanExporter()
        self._resource = otlp.resource(resource.attributes)
        self._scope = otlp.scope("mpserve", VERSION)
        try:
            self._send = self._sdk._client.export
        except AttributeError:
            raise ValueError(
                f"{EXPORTER} {version(EXPORTER)} is installed. Inside it differs from {TESTED}, by which mpserve sends:"
                f" pip install '{EXPORTER}=={TESTED}'"
            ) from None

    def export(self, spans: Sequence[Any]) -> SpanExportResult:
        ours = [span.data for span in spans if type(span) is Ended]
        users: list[ReadableSpan] = [span for span in spans if type(span) is not Ended]
        data = otlp.request(self._resource, self._scope, ours) if ours else b""
        if users:
            data += encode_spans(users).SerializePartialToString()
        return SpanExportResult.SUCCESS if self._send(data).success else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._sdk.shutdown()  # type: ignore[no-untyped-call]


class Ids(IdGenerator):
    """Random ids from a source of their own: a model may seed the one of ``random`` alike in every worker."""

    def __init__(self) -> None:
        source = Random(os.urandom(16))
        self.bits, self.random = source.getrandbits, source.random

    def generate_trace_id(self) -> int:
        return self.bits(128) or 1

    def generate_span_id(self) -> int:
        return self.bits(64) or 1


class Trace:
    """The place of a request, or of a load, in a trace.

    Attributes:
        span: the span of the request; None: the client has a trace, and the request is not sampled in it.
        parent: the span of the client; None: the request begins the trace.
    """

    __slots__ = ("_text", "context", "parent", "span")

    def __init__(self, span: SpanContext | None, parent: SpanContext | None, context: contexts.Context) -> None:
        self.span = span
        self.parent = parent
        self.context = context
        known = span or parent
        self._text = "-" if known is None else trace.format_trace_id(known.trace_id)

    def enter(self) -> None:
        """Let what this context runs belong to the trace: the user's spans, the calls of other servers, and log lines."""
        contexts.attach(self.context)
        trace_in_log.set(self._text)

    def name_in_log(self) -> None:
        """Let the log lines of this context name the trace."""
        trace_in_log.set(self._text)


class Tracer:
    """Makes the spans of this process, and sends them. Made after the fork, since it has a thread.
    Raises ValueError: the SDK's exporter cannot be used.
    """

    def __init__(self, is_parent_based: bool, ratio: float, slot: int) -> None:
        self.ratio = ratio
        self._is_parent_based = is_parent_based
        self._bound = round(ratio * ALL)
        self._ids = Ids()
        self.fields = sorted(propagate.get_global_textmap().fields - BESIDE_A_TRACE) or ["traceparent"]
        """The headers in which a client sends its trace, such as traceparent."""
        self._left_out = trace.set_span_in_context(NonRecordingSpan(SpanContext(ALL - 1, ALL - 1, False, NOT_SAMPLED)))
        resource = _resource(slot)
        self._processor = BatchSpanProcessor(Exporter(resource))
        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # else the user's code has set its own
            provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
            provider.add_span_processor(self._processor)
            trace.set_tracer_provider(provider)

    def pause(self) -> float:
        """How many requests are not traced before the next one that is, by chance, as the environment says."""
        ratio = self.ratio
        if not 0 < ratio < 1:
            return 0 if ratio else math.inf
        return math.log(1 - self._ids.random()) // math.log(1 - ratio)

    def new_id(self) -> int:
        """The id of a new trace, which is among those that the environment samples if it samples any."""
        return self._ids.bits(64) << 64 | self._ids.bits(64) % (self._bound or ALL)

    def follows(self, parent: SpanContext) -> bool:
        """Whether a request in the trace of its client is sampled, as the environment says."""
        if self._is_parent_based:
            return bool(parent.trace_flags.sampled)
        return parent.trace_id % ALL < self._bound

    def begin(self) -> Trace:
        """Begin a trace."""
        span = SpanContext(self.new_id(), self._ids.generate_span_id(), False, SAMPLED)
        return Trace(span, None, trace.set_span_in_context(NonRecordingSpan(span)))

    def extract(self, headers: Mapping[str, str]) -> tuple[contexts.Context, SpanContext]:
        """The trace in these headers, and the client's span in it, which is not valid if the headers cannot be read."""
        context = propagate.extract(headers)
        return context, trace.get_current_span(context).get_span_context()

    def join(self, context: contexts.Context, parent: SpanContext, is_sampled: bool) -> Trace:
        """The place of a request in the trace of its client."""
        if not is_sampled:  # nor are the spans of the user's code, and those of the servers behind this one
            given = SpanContext(parent.trace_id, parent.span_id, True, NOT_SAMPLED, parent.trace_state)
            return Trace(None, parent, trace.set_span_in_context(NonRecordingSpan(given), context))
        span = self._below(parent)
        return Trace(span, parent, trace.set_span_in_context(NonRecordingSpan(span), context))

    def _below(self, parent: SpanContext) -> SpanContext:
        """A new span in the trace of ``parent``."""
        return SpanContext(parent.trace_id, self._ids.generate_span_id(), False, SAMPLED, parent.trace_state)

    def new_span(self) -> bytes:
        """The id of a new span."""
        return self._ids.generate_span_id().to_bytes(8, "big")

    def send(self, span: SpanContext, data: bytes) -> None:
        """Send spans of a trace that have ended; ``span`` is one of them."""
        self._processor.on_end(Ended(span, data))  # type: ignore[arg-type]

    @contextmanager
    def _recorded(
        self, name: str, span: SpanContext, parent: SpanContext | None, kind: int, more: Attributes
    ) -> Iterator[None]:
        """Send a span that lasts as long as what runs within; an exception is its failure."""
        begin, failure = time.time_ns(), None
        try:
            yield
        except BaseException as error:
            failure = repr(error)
            raise
        finally:
            times = begin, time.time_ns()
            self.send(span, otlp.span(name, ids_of(span, parent), times, kind, otlp.attributes(more), failure))

    @contextmanager
    def loading(self, name: str, attributes: Attributes) -> Iterator[None]:
        if not self._bound:
            yield
            return
        place = self.begin()
        assert place.span is not None
        token = contexts.attach(place.context)
        with self._recorded(name, place.span, None, otlp.INTERNAL, attributes):
            try:
                yield
            finally:
                contexts.detach(token)

    @contextmanager
    def calling(self, name: str, attributes: Attributes, headers: dict[str, str]) -> Iterator[None]:
        parent = trace.get_current_span().get_span_context()
        if not parent.trace_flags.sampled:
            span = parent
            if not parent.is_valid or parent.trace_id == ALL - 1:  # else the other server would begin traces of its own
                span = SpanContext(self._ids.generate_trace_id(), self._ids.generate_span_id(), False, NOT_SAMPLED)
            propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(span)))
            yield
            return
        span = self._below(parent)
        # Not attached: an abandoned request closes its coroutine outside of its context.
        propagate.inject(headers, trace.set_span_in_context(NonRecordingSpan(span)))
        with self._recorded(name, span, parent, otlp.CLIENT, attributes):
            yield

    def leave_out(self) -> None:
        contexts.attach(self._left_out)

    def flush(self) -> None:
        self._processor.force_flush()


def _resource(slot: int) -> Resource:
    """What the environment says of this service; its name is mpserve if the environment has none."""
    resource = Resource.create({"process.pid": os.getpid(), "mpserve.slot": slot})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "mpserve"}))
    return resource
