"""The V1 protocol (TF-Serving style): request bodies to payloads for ``predict``, and results to bodies.

Knows content types as words only: no HTTP, no routes, no status codes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import numpy as np
import orjson

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.array_likes import MISSING, by_name, frame_columns, is_foreign, is_frame, to_numpy
from mpserve.protocol.codec import JSON
from mpserve.protocol.datatypes import Array, Document, NonFinite, json_values
from mpserve.protocol.json import plain
from mpserve.protocol.json.documents import parse_object
from mpserve.protocol.json.numbers import Numbers
from mpserve.protocol.messages import InferResponse

# The media types of JSON in practice: `curl -d` sends form-urlencoded, the kserve client octet-stream, others nothing.
_JSON_MEDIA_TYPES = frozenset({"", "application/json", "application/octet-stream", "application/x-www-form-urlencoded"})
_JSON_SPACE = b" \t\r\n"
EPOCH = b"1970-01-01"


def decode_request(body: bytes, content_type: str | None, numbers: bool = False) -> dict[str, Any] | bytes:
    """The payload of ``:predict`` and ``:explain``: a dict if the body is JSON by its content type, else the raw bytes.
    Parameters of the content type (``charset``) are ignored, and any ``+json`` is JSON. A ``text/plain`` is JSON if it holds a
    JSON object: ``fetch`` in a browser names every text so. With `numbers` the ``instances`` may be ``Numbers``.
    Raises InvalidInput: bad JSON, not an object, or ``instances`` is there and no list.
    """
    numbered = "instances" if numbers else ""
    if is_json(content_type):
        document = parse_object(body, numbered)
    elif is_json_text(body, content_type):
        try:
            document = parse_object(body, numbered)
        except InvalidInput:
            return body
    else:
        return body
    if not isinstance(document.get("instances", []), list | Numbers):
        raise InvalidInput('Expected "instances" to be a list')
    return document


def is_json(content_type: str | None) -> bool:
    """Whether a body of this content type is JSON."""
    media_type = _media_type(content_type)
    return media_type in _JSON_MEDIA_TYPES or media_type.endswith("+json")


def is_json_text(body: bytes, content_type: str | None) -> bool:
    """Whether a body is a text that may be JSON."""
    return _media_type(content_type) == "text/plain" and body.lstrip(_JSON_SPACE).startswith(b"{")


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def encode_response(result: object, nonfinite: NonFinite = "error") -> tuple[bytes, str | None]:
    """A model's result as (body, content type).

    str is text/plain, bytes are application/octet-stream, anything else is JSON: numpy arrays (of the machine's byte
    order) and scalars, datetimes, dataclasses, and whatever has ``tolist``, such as torch tensors on any device. An
    ``InferResponse`` becomes ``{"predictions": ...}``, see ``predictions``.

    Raises:
        InferenceError: None, a type that JSON has no form for, or, with `nonfinite` "error", a NaN or infinity
            anywhere. The JSON writer makes the latter null, which "null" leaves so; otherwise, where the text holds a
            null, which is rare, the result is searched for one.
    """
    if isinstance(result, bytes | bytearray | memoryview):
        return bytes(result), "application/octet-stream"
    if result is None:
        raise InferenceError("the model returned None, expected a dict, list, str, bytes or InferResponse")
    if isinstance(result, InferResponse):
        result = predictions(result, nonfinite)
    try:
        if isinstance(result, str):
            return result.encode(), "text/plain; charset=utf-8"
        body = _dump(result, nonfinite)
    except (TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise InferenceError(f"the model's result cannot be written as JSON: {cause}") from error
    if nonfinite == "error" and b"null" in body and _holds_non_finite(result):
        raise InferenceError("the model's result holds NaN or infinity, which JSON cannot carry")
    if EPOCH in body and _holds(result, _is_missing_date):  # the JSON writer takes NaT of days for this day
        raise InferenceError("the model's result holds NaT, which is no date")
    return body, JSON


def write_plain(outputs: Sequence[tuple[str, str, Array]], nonfinite: NonFinite) -> bytes | None:
    """The JSON of a response with this output (name, datatype, array).
    None if the output is not plain, there are several, or JSON cannot carry a value that must not be null.
    """
    if len(outputs) != 1:
        return None
    [(_, datatype, array)] = outputs
    if array.dtype is not plain.WRITABLE.get(datatype):
        return None
    try:
        values = orjson.dumps(array, None, orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError:  # it takes neither strides nor an array of no dimensions
        return None
    return None if plain.NULL in values and nonfinite != "null" else b"".join((b'{"predictions":', values, b"}"))


def encode_part(part: object) -> bytes:
    """A part of a result that is streamed: text or bytes, as the SDK has it. Raises InferenceError if it is neither."""
    if isinstance(part, str):
        return part.encode(errors="replace")
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    raise InferenceError(f"a part of the model's answer is of type {type(part).__name__}, expected str or bytes")


def predictions(response: InferResponse, nonfinite: NonFinite = "error") -> dict[str, Any]:
    """A V2 response in V1's form, as TF-Serving has it.
    One output: its rows. Several that agree in the first dimension: one ``{"name": row, ...}`` per instance. Several
    that do not: one ``{"name": values, ...}``.
    Raises InferenceError if an output does not fit its declaration, or holds what JSON cannot carry.
    """
    arrays = {output.name: output.as_numpy() for output in response.outputs}
    columns = {name: _values(name, array, nonfinite) for name, array in arrays.items()}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) == 1 and lengths != {()}:
        return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
    return {"predictions": columns}


def _values(name: str, array: Array, nonfinite: NonFinite) -> Any:
    if array.dtype.kind == "O" and array.ndim == 1 and array.size and type(array[0]) is Document:
        return [orjson.Fragment(bytes(document)) for document in array.tolist()]
    try:
        return json_values(array, nonfinite)
    except ValueError as error:
        raise InferenceError(f"output '{name}' {error}") from None


def _dump(result: object, nonfinite: NonFinite) -> bytes:
    default = _plain if nonfinite == "null" else _plain_and_whole
    option = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    try:
        return orjson.dumps(result, default=default, option=option)
    except TypeError as error:
        if not isinstance(result, dict) or error.__cause__ is not None:
            raise
        return orjson.dumps(_with_plain_keys(result), default=default, option=option)


def _with_plain_keys(value: Any) -> Any:
    """The value with Python's own keys instead of numpy's, which the JSON writer does not take."""
    if isinstance(value, dict):
        return by_name(
            (key.item() if isinstance(key, np.generic) else key, _with_plain_keys(held)) for key, held in value.items()
        )
    return list(map(_with_plain_keys, value)) if type(value) in (list, tuple) else value


def _plain(value: Any, nonfinite: NonFinite = "null") -> Any:
    """A value that the JSON writer cannot take, one step nearer to a value that it can."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return dict(zip(value._fields, value, strict=True))
    if is_frame(value):
        return _rows(value, nonfinite)
    if is_foreign(value):
        return json_values(to_numpy(value), nonfinite)
    return (
        _plain_scalar(value, nonfinite)
        if type(value).__name__ in MISSING or isinstance(value, date)
        else _plain_array(value)
    )


def _rows(frame: Any, nonfinite: NonFinite) -> list[dict[str, Any]]:
    columns = {name: json_values(to_numpy(column), nonfinite) for name, column in frame_columns(frame).items()}
    listed = [values.tolist() if isinstance(values, np.ndarray) else values for values in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*listed, strict=True)]


def _plain_scalar(value: Any, nonfinite: NonFinite) -> str | None:
    if type(value).__name__ not in MISSING:
        return str(value.isoformat())  # pandas has datetimes of its own
    if nonfinite == "error":
        raise ValueError("a value is missing, for which there is null if --nonfinite allows it")
    return None


def _plain_array(value: Any) -> Any:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            return value.numpy()
        except TypeError:  # a datatype that numpy lacks: bfloat16
            return value.tolist()
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind in "biuf" and not value.flags.c_contiguous:
        return np.ascontiguousarray(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(type(value).__name__)


def _plain_and_whole(value: Any) -> Any:
    """As ``_plain``. Raises ValueError if a value is missing."""
    return _plain(value, "error")


def _holds_non_finite(result: Any) -> bool:
    return _holds(result, _is_non_finite)


def _is_non_finite(value: Any) -> bool:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return not bool(np.isfinite(value).all())
    return isinstance(value, float) and not math.isfinite(value)


def _is_missing_date(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.datetime64) and value.dtype.kind == "M" and bool(np.isnat(value).any())


def _holds(value: Any, is_sought: Callable[[Any], bool]) -> bool:
    """Whether a value, or a value within it, is sought."""
    if is_sought(value):
        return True
    if isinstance(value, dict):
        return any(_holds(held, is_sought) for held in value.values())
    if isinstance(value, list | tuple):
        return any(_holds(held, is_sought) for held in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufM":
        return False
    if hasattr(value, "tolist"):
        return _holds(value.tolist(), is_sought)
    if dataclasses.is_dataclass(value):
        return any(_holds(getattr(value, field.name), is_sought) for field in dataclasses.fields(value))
    return False
