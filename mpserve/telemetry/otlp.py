"""Writes spans in the bytes of OTLP. The SDK's encoder would take several times as long for a request as the server does.

Messages that stand one after the other are one message.

Source: opentelemetry-proto 1.9, trace.proto, common.proto, resource.proto.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Protocol

TIMES = Struct("<BQBQ")
BEGIN, END = 0x39, 0x41  # the fields of a span's times
INTERNAL, SERVER, CLIENT = 1, 2, 3
"""The kinds of spans."""


class SpanIds(Protocol):
    """A ``SpanContext`` of OpenTelemetry."""

    @property
    def trace_id(self) -> int: ...
    @property
    def span_id(self) -> int: ...


Attributes = Mapping[str, str | int]
"""Attributes of a span: texts, and numbers of 0 or more."""


def ids_of(span: SpanIds, parent: SpanIds | None) -> tuple[bytes, bytes, bytes]:
    """The ids of the trace, of the span, and of its parent, empty if it has none."""
    above = b"" if parent is None else parent.span_id.to_bytes(8, "big")
    return span.trace_id.to_bytes(16, "big"), span.span_id.to_bytes(8, "big"), above


def _number(value: int) -> bytes:
    """A number of 0 or more in base 128."""
    if value < 0x80:
        return b"%c" % value
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _field(tag: bytes, content: bytes) -> bytes:
    size = len(content)
    return b"%b%c%b" % (tag, size, content) if size < 0x80 else b"%b%b%b" % (tag, _number(size), content)


def attributes(values: Attributes) -> bytes:
    return b"".join([_field(b"\x4a", _key_value(key, value)) for key, value in values.items()])


def _key_value(key: str, value: str | int) -> bytes:
    held = b"\x18" + _number(value) if isinstance(value, int) else _field(b"\x0a", _text(value))
    return _field(b"\x0a", _text(key)) + _field(b"\x12", held)


def _text(value: str) -> bytes:
    return value.encode(errors="replace")


@lru_cache(maxsize=1024)
def of_model(name: str, version: str) -> bytes:
    """The attributes of a version of a model."""
    return attributes({"model_name": name, "model_version": version})


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _field(b"\x2a", _text(name))


def link(trace_id: bytes, span_id: bytes) -> bytes:
    """A link of a span to another span."""
    return b"\x6a\x1c\x0a\x10%b\x12\x08%b" % (trace_id, span_id)


def span(
    name: str,
    ids: tuple[bytes, bytes, bytes],
    times: tuple[int, int],
    kind: int = INTERNAL,
    more: bytes = b"",
    failure: str | None = None,
) -> bytes:
    """A span as a part of a message.

    Args:
        name: the name.
        ids: of the trace, of the span, and of its parent, empty if it has none.
        times: its begin and its end in nanoseconds since 1970.
        kind: INTERNAL, SERVER or CLIENT.
        more: its attributes and links.
        failure: why it failed.
    """
    trace_id, span_id, parent = ids
    content = b"\x0a\x10%b\x12\x08%b%b%b\x30%c%b%b" % (
        trace_id,
        span_id,
        b"\x22\x08" + parent if parent else b"",
        _name(name),
        kind,
        TIMES.pack(BEGIN, times[0], END, times[1]),
        more,
    )
    if failure is not None:
        content += _field(b"\x7a", _field(b"\x12", _text(failure)) + b"\x18\x02")
    return _field(b"\x12", content)


def resource(values: Mapping[str, object]) -> bytes:
    """A service with these attributes."""
    known = {key: value if isinstance(value, int) else str(value) for key, value in values.items()}
    return _field(b"\x0a", b"".join([_field(b"\x0a", _key_value(key, value)) for key, value in known.items()]))


def scope(name: str, version: str) -> bytes:
    """What has made spans."""
    return _field(b"\x0a", _field(b"\x0a", _text(name)) + _field(b"\x12", _text(version)))


def request(resource: bytes, scope: bytes, spans: Iterable[bytes]) -> bytes:
    """An ExportTraceServiceRequest."""
    return _field(b"\x0a", resource + _field(b"\x12", scope + b"".join(spans)))
