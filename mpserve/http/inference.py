"""The hot routes: ``:predict``, ``:explain`` and ``/infer``, as plain ASGI endpoints.

The heart of each is an async function from (route, headers, body) to an answer, with nothing of ASGI in it, so that
a worker may call it without an ASGI cycle.
"""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from mpserve.errors import InferenceError
from mpserve.http.requests import INLINE, read_body, read_headers
from mpserve.http.responses import JSON_ONLY, Answer, Headers, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol import cloudevents, compression, v1, v2
from mpserve.protocol.beginnings import read_request
from mpserve.protocol.messages import InferResponse
from mpserve.protocol.wire import Encoded
from mpserve.serving.dataplane import Dataplane, Plane
from mpserve.serving.stream import ModelStream

BINARY_HEADER = "inference-header-content-length"
JSON = {"content-type": "application/json"}
FRAMING = ("content-length", "transfer-encoding")
"""Headers that are the server's alone to set."""

# RFC 9110, 5.1 and 5.5; a value is a text here, written as Latin-1.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class Call(NamedTuple):
    """What an inference request says besides its body. ``headers`` have lower-case names, as models expect them."""

    model: str
    version: str | None
    headers: dict[str, str]


Inference = Callable[[Plane, Call, bytes], Awaitable[Answer | StreamedAnswer]]


async def predict(plane: Plane, call: Call, body: bytes) -> Answer | StreamedAnswer:
    """V1 ``POST /v1/models/{model}:predict``."""
    return await _v1(plane, "predict", call, body)


async def explain(plane: Plane, call: Call, body: bytes) -> Answer | StreamedAnswer:
    """V1 ``POST /v1/models/{model}:explain``."""
    return await _v1(plane, "explain", call, body)


async def _v1(plane: Plane, verb: str, call: Call, body: bytes) -> Answer | StreamedAnswer:
    settings = plane.core.settings
    plane.refuse_early(call.model, call.version)
    event = cloudevents.unwrap(call.headers, body) if cloudevents.is_event(call.headers) else None
    if event is None:
        numbers = plane.takes_numbers(verb, call.model, call.version)
        payload = v1.decode_request(body, call.headers.get("content-type"), numbers)
    else:
        payload = event.data
    result, response_headers = await plane.run(verb, call.model, call.version, payload, call.headers)
    if isinstance(result, ModelStream):
        if event is not None:
            await result.refuse(f"Model {call.model} answers in parts, which is not offered for a CloudEvent")
        return await StreamedAnswer(result, v1.encode_part, lambda: head(response_headers, {})).begin()
    encoded, content_type = v1.encode_response(result, settings.nonfinite)
    if event is None:
        return _answer(encoded, response_headers, {"content-type": content_type} if content_type else {})
    wrapped, encoded = cloudevents.wrap(
        event, encoded, content_type, call.model,
        source=settings.ce_source, event_type=settings.ce_type, merge=settings.ce_merge,
    )  # fmt: skip
    return _answer(encoded, {**response_headers, **wrapped}, {})


async def infer(plane: Plane, call: Call, body: bytes) -> Answer:
    """V2 ``POST /v2/models/{model}[/versions/{version}]/infer``, JSON and binary."""
    nonfinite = plane.core.settings.nonfinite
    plane.refuse_early(call.model, call.version)
    header_length = call.headers.get(BINARY_HEADER)
    plain = read_request(body) if header_length is None else None
    if plain is None:
        declared = plane.declared_inputs(call.model, call.version) if header_length == "0" else ()
        request = v2.decode_request(body, call.model, call.version, header_length, declared)
    else:
        request = v2.request_of(plain, call.model, call.version)
    result, response_headers = await plane.run("predict", call.model, call.version, request, call.headers)
    if not isinstance(result, InferResponse):
        if isinstance(result, ModelStream):
            await result.refuse(
                f"Model {call.model} answers in parts, which /infer does not carry: ask for /generate_stream, or call"
                " ModelStreamInfer over gRPC"
            )
        # An SDK model may return the response object as a dict.
        encoded, content_type = v1.encode_response(result, nonfinite)
        return _answer(encoded, response_headers, {"content-type": content_type} if content_type else {})
    answer = v2.encode_answer(result, request, nonfinite)
    if answer.json_length is None:
        return _answer(answer.join(), response_headers, JSON)
    if not response_headers:
        return binary_answer(answer)
    binary = {"content-type": "application/octet-stream", BINARY_HEADER: str(answer.json_length)}
    return _answer(answer.join(), {**response_headers, **binary}, {})


def binary_answer(encoded: Encoded) -> Answer:
    """An answer that has tensors behind its JSON."""
    length = b"%d" % (encoded.json_length or 0)
    headers = [(b"content-type", b"application/octet-stream"), (BINARY_HEADER.encode(), length)]
    return Answer(200, headers, encoded.join())


def _answer(body: bytes, headers: dict[str, str], defaults: dict[str, str]) -> Answer:
    if not headers and defaults is JSON:  # most answers
        return Answer(200, JSON_ONLY, body)
    return Answer(200, head(headers, defaults), body)


def head(headers: dict[str, str], defaults: dict[str, str]) -> Headers:
    """``headers`` are the model's, and what the protocol must have; ``defaults`` stand where the model set none.

    Raises:
        InferenceError: the model set one that cannot be sent.
    """
    given = defaults | {str(name).lower(): str(value) for name, value in headers.items()}
    return [_header(name, value) for name, value in given.items() if name not in FRAMING]


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    """A header that the model set, refused where it could end the head or the server could not write it."""
    if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
        raise InferenceError(
            f"the model set the response header {name!r} to {value!r}; expected a token, and a line of Latin-1 text"
        )
    return name.encode("latin-1"), value.encode("latin-1")


class Endpoint:
    """An inference function as an ASGI application."""

    def __init__(self, dataplane: Dataplane, inference: Inference) -> None:
        self.dataplane = dataplane
        self.inference = inference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope["headers"])
        try:
            body = await read_body(self.dataplane.core, headers, receive)
        except Exception as error:
            await error_answer(error)(scope, receive, send)
            return
        if body is not None:
            parameters = scope["path_params"]
            call = Call(parameters["model"], parameters.get("version"), headers)
            answer = await respond(self.dataplane, self.inference, call, body)
            await answer(scope, receive, send)


async def respond(plane: Plane, inference: Inference, call: Call, body: bytes) -> Answer | StreamedAnswer:
    """The answer to an inference request, also when it fails; a whole one in a content coding that the client takes."""
    try:
        answer = await inference(plane, call, body)
        if "accept-encoding" in call.headers and isinstance(answer, Answer):
            answer = await compressed(plane, answer, call.headers["accept-encoding"])
    except Exception as error:
        answer = error_answer(error)
    return answer


async def compressed(plane: Plane, answer: Answer, accept_encoding: str) -> Answer:
    """The answer in a content coding that the client takes, where that saves bytes and the model has not chosen one."""
    coding = coding_for(answer, accept_encoding)
    if coding is None:
        return answer
    return in_coding(answer, coding) if len(answer.body) <= INLINE else await plane.offload(in_coding, answer, coding)


def coding_for(answer: Answer, accept_encoding: str) -> compression.Coding | None:
    """The content coding in which to send an answer, if any."""
    coding = compression.choose(accept_encoding)
    chosen_by_model = any(name == b"content-encoding" for name, _ in answer.headers)
    return None if coding is None or chosen_by_model or not compression.worthwhile([answer.body]) else coding


def in_coding(answer: Answer, coding: compression.Coding) -> Answer:
    """The answer in that coding."""
    headers = [*answer.headers, (b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")]
    return Answer(answer.status, headers, compression.compress(coding, [answer.body]))
