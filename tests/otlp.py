"""A receiver of OTLP over HTTP on loopback, which decodes what real exporters send."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent

KINDS = {Sent.SPAN_KIND_INTERNAL: "internal", Sent.SPAN_KIND_SERVER: "server", Sent.SPAN_KIND_CLIENT: "client"}


class Span(NamedTuple):
    """A span as it was received. ``links``: the ids of the linked spans; ``failure``: the words of its failure."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    links: set[str]
    failure: str | None


class Receiver:
    """The spans that have come, and the address for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.spans: list[Span] = []

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _values(resource.resource.attributes)["service.name"]
            self.spans += [_span(service, sent) for scope in resource.scope_spans for sent in scope.spans]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def _span(service: str, sent: Sent) -> Span:
    return Span(
        service, sent.name, KINDS[sent.kind], sent.trace_id.hex(), sent.span_id.hex(), sent.parent_span_id.hex(),
        sent.start_time_unix_nano, sent.end_time_unix_nano, _values(sent.attributes),
        {link.span_id.hex() for link in sent.links},
        sent.status.message if sent.status.code == sent.status.STATUS_CODE_ERROR else None,
    )  # fmt: skip


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
            receiver.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield receiver
        finally:
            server.shutdown()
