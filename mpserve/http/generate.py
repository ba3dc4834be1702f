"""Triton's generate extension: ``/generate`` answers with one JSON object, ``/generate_stream`` with one event for each.

The body is JSON whatever its content type says: ``curl -d``, by which the extension is documented, says form.
"""

from collections.abc import Callable
from typing import Any

from mpserve.errors import NotSupported
from mpserve.http.inference import Call, head
from mpserve.http.responses import Answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.generate import decode_request, encode_response
from mpserve.protocol.messages import InferRequest
from mpserve.serving.dataplane import Plane
from mpserve.serving.stream import ModelStream

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


async def generate(plane: Plane, call: Call, body: bytes) -> Answer:
    """``POST /v2/models/{model}[/versions/{version}]/generate``.

    Raises:
        NotSupported: the model answers in parts, and not in exactly one.
    """
    request, encode = await _asked(plane, call, body)
    result, headers = await plane.run("predict", call.model, call.version, request, call.headers)
    if isinstance(result, ModelStream):
        result = await _only_part(result)
    return Answer(200, head({**headers, **JSON}, {}), encode(result))


async def generate_stream(plane: Plane, call: Call, body: bytes) -> Answer | StreamedAnswer:
    """``POST /v2/models/{model}[/versions/{version}]/generate_stream``: server-sent events.

    What fails after the first event is told in a last one.
    """
    request, encode = await _asked(plane, call, body)
    result, headers = await plane.run("predict", call.model, call.version, request, call.headers)
    if not isinstance(result, ModelStream):
        return Answer(200, head({**headers, **EVENTS}, {}), _event(encode(result)))
    return await StreamedAnswer(
        result, lambda part: _event(encode(part)), lambda: head({**headers, **EVENTS}, {}), tell=_event
    ).begin()


async def _asked(plane: Plane, call: Call, body: bytes) -> tuple[InferRequest, Callable[[Any], bytes]]:
    """The request, and what makes an answer's JSON of what the model gives."""
    core = plane.core
    served = core.find(call.model, call.version)
    inputs, _ = await core.describe(served)
    declared = [(each["name"], each["datatype"], each["shape"]) for each in inputs]
    request = decode_request(body, call.model, call.version, declared)
    model = served.model

    def encode(result: Any) -> bytes:
        return encode_response(result, model.name, model.version, request.id, core.settings.nonfinite)

    return request, encode


async def _only_part(stream: ModelStream) -> Any:
    parts = []
    try:
        async for part in stream:
            parts.append(part)
            if len(parts) > 1:
                break
    finally:
        await stream.aclose()
    if len(parts) != 1:
        raise NotSupported(
            "generate expects the model to produce exactly 1 response; use generate_stream for a model that produces any"
            " number of them"
        )
    return parts[0]


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
