"""The hot routes: ``:predict``, ``:explain`` and ``/infer``, as plain ASGI endpoints.

The heart of each is an async function from (route, headers, body) to an ``Answer``, with nothing of ASGI in it, so that
a worker may call it without an ASGI cycle.
"""

import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from mpserve.errors import InferenceError, InvalidInput, NotSupported, PayloadTooLarge
from mpserve.http.responses import Answer, error_answer
from mpserve.protocol import v1, v2
from mpserve.protocol.messages import InferResponse
from mpserve.serving.dataplane import Dataplane

BINARY_HEADER = "inference-header-content-length"
FRAMING = ("content-length", "transfer-encoding")
"""Headers that are the server's alone to set."""

# RFC 9110, 5.1 and 5.5; a value is a text here, written as Latin-1. Nothing longer than 18 digits is a length.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
CONTENT_LENGTH = re.compile(r"[0-9]{1,18}")


class Call(NamedTuple):
    """What an inference request says besides its body. ``headers`` have lower-case names, as models expect them."""

    model: str
    version: str | None
    headers: dict[str, str]


Inference = Callable[[Dataplane, Call, bytes], Awaitable[Answer]]


async def predict(dataplane: Dataplane, call: Call, body: bytes) -> Answer:
    """V1 ``POST /v1/models/{model}:predict``."""
    return await _v1(dataplane, "predict", call, body)


async def explain(dataplane: Dataplane, call: Call, body: bytes) -> Answer:
    """V1 ``POST /v1/models/{model}:explain``."""
    return await _v1(dataplane, "explain", call, body)


async def _v1(dataplane: Dataplane, verb: str, call: Call, body: bytes) -> Answer:
    payload = v1.decode_request(body, call.headers.get("content-type"))
    result, response_headers = await dataplane.run(verb, call.model, call.version, payload, call.headers)
    encoded, content_type = v1.encode_response(result)
    return _answer(encoded, content_type, response_headers)


async def infer(dataplane: Dataplane, call: Call, body: bytes) -> Answer:
    """V2 ``POST /v2/models/{model}[/versions/{version}]/infer``, JSON."""
    if BINARY_HEADER in call.headers:
        raise NotSupported("the binary tensor extension is not supported; send the tensors as JSON")
    request = v2.decode_request(body, call.model, call.version)
    result, response_headers = await dataplane.run("predict", call.model, call.version, request, call.headers)
    if not isinstance(result, InferResponse):  # an SDK model may return the response object as a dict
        encoded, content_type = v1.encode_response(result)
        return _answer(encoded, content_type, response_headers)
    return _answer(v2.encode_response(result), "application/json", response_headers)


def _answer(body: bytes, content_type: str | None, response_headers: dict[str, str]) -> Answer:
    given = {str(name).lower(): str(value) for name, value in response_headers.items()}
    if content_type:
        given.setdefault("content-type", content_type)
    return Answer(200, [_header(name, value) for name, value in given.items() if name not in FRAMING], body)


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
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            body = await read_body(receive, headers, self.dataplane.core.settings.max_body_size)
            if body is None:
                return
            parameters = scope["path_params"]
            call = Call(parameters["model"], parameters.get("version"), headers)
            answer = await self.inference(self.dataplane, call, body)
        except Exception as error:
            answer = error_answer(error)
        await answer.send(send)


async def read_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes | None:
    """The whole request body, or None when the client has gone away.

    Raises:
        PayloadTooLarge: it is longer than ``limit`` bytes; announced bodies are refused before they are read.
        InvalidInput: ``content-length`` is no number.
    """
    announced = headers.get("content-length", "0")
    if not CONTENT_LENGTH.fullmatch(announced):
        raise InvalidInput(f"expected a number as content-length, got {announced[:40]!r}")
    chunks: list[bytes] = []
    size = 0
    while max(size, int(announced)) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size <= limit and not message.get("more_body", False):
            return b"".join(chunks) if len(chunks) > 1 else chunks[0]
    raise PayloadTooLarge(f"the request body is larger than the {limit} bytes that --max_body_size allows")
