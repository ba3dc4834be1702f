"""From the outcome of an inference request to an HTTP answer: status, headers and body, or a stream of parts."""

import re
from collections.abc import Mapping

from mpserve.errors import InferenceError, MPServeError
from mpserve.http.responses import JSON_ONLY, Answer, Headers, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.codec import JSON, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest
from mpserve.serving.models.faults import report

FRAMING = ("content-length", "transfer-encoding")
"""Headers that are the server's alone to set."""

# RFC 9110, 5.1 and 5.5; a value is a text here, written as Latin-1.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def whole(request: InferenceRequest, encoded: Encoded) -> Answer:
    """The answer of a request that was answered as a whole."""
    body, content_type, fields = encoded
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
    """The answer where the model has set headers that cannot be sent, which is logged here."""
    report(fault)
    return error_answer(fault)


def _head(default: Mapping[str, str], set_by_model: Mapping[str, str], fields: Mapping[str, str]) -> Headers:
    """The headers of an answer.

    Raises:
        InferenceError: the model set one that cannot be sent.
    """
    try:
        texts = {str(name).lower(): str(value) for name, value in set_by_model.items()}
    except Exception as error:
        raise InferenceError("the model set a response header that has no text") from error
    given = {**default, **texts, **fields}
    return [_header(name, value) for name, value in given.items() if name not in FRAMING]


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    """A header, refused where it could end the head or the server could not write it."""
    if not HEADER_NAME.fullmatch(name) or not HEADER_VALUE.fullmatch(value):
        raise InferenceError(
            f"the model set the response header {name!r} to {value!r}; expected a token, and a line of Latin-1 text"
        )
    return name.encode("latin-1"), value.encode("latin-1")
