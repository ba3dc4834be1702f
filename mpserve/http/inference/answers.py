"""Makes HTTP answers of the results of inference requests."""

import re
from collections.abc import Mapping
from functools import lru_cache

from mpserve.errors import InferenceError, MPServeError
from mpserve.http.responses import JSON_ONLY, Answer, Headers, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.codec import JSON, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest
from mpserve.serving.models.faults import report

KEPT = 1024  # checked headers that are remembered: most answers of a model repeat theirs
FRAMING = ("content-length", "transfer-encoding")  # headers that only the server may set

# RFC 9110, 5.1 and 5.5. Values are written as Latin-1.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def whole(request: InferenceRequest, encoded: Encoded) -> Answer:
    """The answer of a request with one result."""
    body, content_type, fields = encoded.body, encoded.content_type, encoded.fields or {}
    set_by_model = request.response_headers
    if content_type == JSON and not (fields or set_by_model):
        return Answer(200, JSON_ONLY, body)
    default = {} if content_type is None else {"content-type": content_type}
    try:
        return Answer(200, _head(default, set_by_model or {}, fields), body)
    except MPServeError as fault:
        return refused(fault)


def streamed(request: InferenceRequest, parts: ModelStream) -> Answer | StreamedAnswer:
    """The answer of a request that is answered in parts."""
    codec = request.head.codec
    try:
        headers = _head({}, request.response_headers or {}, codec.part_fields)
    except MPServeError as fault:
        parts.close()
        return refused(fault)
    return StreamedAnswer(parts, headers, codec.last_part, request.context)


def refused(fault: MPServeError) -> Answer:
    """The answer to a request whose model has set invalid headers. Logs the fault."""
    report(fault)
    return error_answer(fault)


def _head(default: Mapping[str, str], set_by_model: Mapping[str, str], fields: Mapping[str, str]) -> Headers:
    """The headers of an answer. Raises InferenceError: the model has set an invalid header."""
    try:
        texts = {str(name).lower(): str(value) for name, value in set_by_model.items()}
    except Exception as error:
        raise InferenceError("the model set a response header that has no text") from error
    headers = {**default, **texts, **fields}
    return [_header(name, value) for name, value in headers.items() if name not in FRAMING]


@lru_cache(KEPT)
def _header(name: str, value: str) -> tuple[bytes, bytes]:
    if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
        raise InferenceError(
            f"the model set the response header {name!r} to {value!r}; expected a token, and a line of Latin-1 text"
        )
    return name.encode("latin-1"), value.encode("latin-1")
