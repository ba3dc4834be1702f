"""CloudEvents 1.0 over HTTP: reads the payload of a request that is an event, and makes an event of the answer.

Headers are a dict with lower-case names. Knows no routes, statuses or environment. The ``cloudevents`` library is not used: it
invents a missing id, specversion or time, and passes on invalid JSON as text. The tests let it read the answers of this module.

Sources: CloudEvents 1.0.2, HTTP protocol binding and JSON event format; the kserve SDK for the attributes of an answer.
"""

import base64
import contextlib
import re
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import orjson

from mpserve.errors import InvalidInput, NotSupported
from mpserve.protocol.json.documents import describe, parse_object
from mpserve.protocol.json.limits import UNLIMITED, JsonLimits

SPECVERSION = "1.0"
STRUCTURED = "application/cloudevents+json"
RESPONSE_TYPE = "io.kserve.inference.response"
_REQUIRED = ("specversion", "id", "source", "type")

# Where the media type of the data may stand; the latter two are how users of the kserve SDK say it in binary mode.
_CONTENT_TYPES = ("datacontenttype", "content-type", "contenttype")

# Not merged into an answer: the attributes that are new in every event, and those of the request's data.
_NOT_MERGED = frozenset({*_REQUIRED, *_CONTENT_TYPES, "time", "dataschema"})

# HTTP binding 3.1.3.2: all of printable ASCII but space, double quote and percent.
_HEADER_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


class Event(NamedTuple):
    """A request that was an event.
    ``attributes`` are strings, or in structured mode any JSON value but null. ``data`` is an object if its media type is JSON
    or missing, else bytes.
    """

    attributes: dict[str, Any]
    data: dict[str, Any] | bytes
    structured: bool


def is_event(headers: Mapping[str, str]) -> bool:
    """Whether a request is a CloudEvent: by its content type, or else by ``ce-specversion``."""
    return "ce-specversion" in headers or _is_enveloped(headers)


def _is_enveloped(headers: Mapping[str, str]) -> bool:
    # Any format and the batches, as the HTTP binding (3) has it: what we cannot read is refused, not mistaken.
    return _media_type(headers.get("content-type")).startswith("application/cloudevents")


def _media_type(content_type: object) -> str:
    return content_type.partition(";")[0].strip().lower() if isinstance(content_type, str) else ""


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether the body of a request that ``is_event`` is JSON: an event, or the data of one."""
    return _is_enveloped(headers) or _holds_json({"datacontenttype": headers.get("content-type")})


def unwrap(headers: Mapping[str, str], body: bytes, limits: JsonLimits = UNLIMITED) -> Event:
    """Read a request that ``is_event``, whose body is within the limits.

    Raises:
        InvalidInput: a required attribute is missing or empty, the version is another, there is no data, the data is
            not the JSON that its media type says, not an object, or ``instances`` is there and no list.
        PayloadTooLarge: JSON in base64 is beyond the limits.
        NotSupported: a batch of events, or an event format other than JSON.
    """
    if not _is_enveloped(headers):
        return _unwrap_binary(headers, body)
    media_type = _media_type(headers["content-type"])
    if media_type != STRUCTURED:
        raise NotSupported(f"{media_type} is not supported, expected {STRUCTURED} or an event in binary mode")
    document = parse_object(body)
    attributes = {name: value for name, value in document.items() if value is not None}
    data = attributes.pop("data", None)
    encoded = attributes.pop("data_base64", None)
    _check(attributes)
    if data is not None and encoded is not None:
        raise InvalidInput("the event has both data and data_base64, expected one of them")
    if encoded is not None:
        data = _decoded(encoded)
        limits.check(data)
        return Event(attributes, _interpreted(data, attributes), True)
    if "data" not in document:
        raise InvalidInput("the event has no data")
    if isinstance(data, str) and not _holds_json(attributes):
        return Event(attributes, data.encode(), True)
    return Event(attributes, _payload(data), True)


def _unwrap_binary(headers: Mapping[str, str], body: bytes) -> Event:
    attributes = {name[3:]: _from_header(name, value) for name, value in headers.items() if name.startswith("ce-")}
    if headers.get("content-type"):
        attributes["datacontenttype"] = headers["content-type"]
    _check(attributes)
    return Event(attributes, _interpreted(body, attributes), False)


def _from_header(name: str, value: str) -> str:
    """An attribute's value, by HTTP binding 3.1.3.2: quotes of older versions undone, then percent-encoding."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInput(f"the header {name} is {value!r}, expected percent-encoded UTF-8") from None


def _check(attributes: Mapping[str, Any]) -> None:
    for name in _REQUIRED:
        value = attributes.get(name)
        if value is None or value == "":
            raise InvalidInput(f"the event has no {name}, which CloudEvents {SPECVERSION} requires")
        if not isinstance(value, str):
            raise InvalidInput(f"the event's {name} is {describe(value)}, expected a string")
    if attributes["specversion"] != SPECVERSION:
        raise InvalidInput(f"the event's specversion is {attributes['specversion']!r}, expected {SPECVERSION!r}")


def _is_json(media_type: str) -> bool:
    return media_type.endswith(("/json", "+json"))


def _holds_json(attributes: Mapping[str, Any]) -> bool:
    """Whether a request's data is JSON, which it is without a media type, and with the default of `curl -d`."""
    media_type = _media_type(next(filter(None, map(attributes.get, _CONTENT_TYPES)), None))
    return _is_json(media_type) or media_type in ("", "application/x-www-form-urlencoded")


def _decoded(encoded: object) -> bytes:
    try:
        if isinstance(encoded, str):
            return base64.b64decode(encoded, validate=True)
    except ValueError:
        pass
    raise InvalidInput("the event's data_base64 is not a string in base64")


def _interpreted(data: bytes, attributes: Mapping[str, Any]) -> dict[str, Any] | bytes:
    if not _holds_json(attributes):
        return data
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"Failed to decode or parse binary json cloudevent: {error}") from None
    return _payload(document)


def _payload(document: object) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidInput(f"the event's data is {describe(document)}, expected a JSON object")
    if not isinstance(document.get("instances", []), list):
        raise InvalidInput('Expected "instances" to be a list')
    return document


def wrap(
    event: Event,
    body: bytes,
    content_type: str | None,
    model_name: str,
    *,
    source: str | None = None,
    event_type: str | None = None,
    merge: bool = False,
) -> tuple[dict[str, str], bytes]:
    """A V1 answer as the (headers, body) of an event in the mode of the request's.
    id and time are new. The source is ``source`` or ``io.kserve.inference.<model_name>``, the type is ``event_type`` or
    ``RESPONSE_TYPE``. With ``merge`` the request's other attributes are carried over, save those that describe its
    data. A body whose content type is JSON must be JSON; without a content type it counts as application/octet-stream.
    """
    content_type = content_type or "application/octet-stream"
    attributes: dict[str, Any] = {
        "specversion": SPECVERSION,
        "id": str(uuid.uuid4()),
        "source": source or f"io.kserve.inference.{model_name}",
        "type": event_type or RESPONSE_TYPE,
        "time": datetime.now(timezone.utc).isoformat(),
    }
    if merge:
        attributes |= {name: value for name, value in event.attributes.items() if name not in _NOT_MERGED}
    if event.structured:
        head = orjson.dumps({**attributes, "datacontenttype": content_type})
        return {"content-type": STRUCTURED}, b"".join((head[:-1], b",", *_data_member(body, content_type), b"}"))
    headers = {f"ce-{name}": quote(value, safe=_HEADER_SAFE) for name, value in attributes.items()}
    return {**headers, "content-type": content_type}, body


def _data_member(body: bytes, content_type: str) -> tuple[bytes, ...]:
    """The member of a JSON event with the answer; JSON goes in unchanged (JSON format 3.1.1)."""
    media_type = _media_type(content_type)
    if _is_json(media_type):
        return b'"data":', body
    if media_type.startswith("text/"):
        with contextlib.suppress(UnicodeDecodeError):
            return b'"data":', orjson.dumps(body.decode())
    return b'"data_base64":"', base64.b64encode(body), b'"'
