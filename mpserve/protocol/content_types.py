"""MLServer's content types: what the elements of a V2 input mean, by the parameter ``content_type`` of the input or the request.

An input's own content type comes first. A missing element stays missing. ``np`` and ``pd`` leave the array as it is; ``pd`` of a
request says that its inputs are the columns of one table.

Source: MLServer's documentation, "Content Types (and Codecs)".
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, array_of_objects
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.protocol.tensors import InferInput, NamedArray, Parameters

CONTENT_TYPE = "content_type"
TABLE = "pd"


def decoded(inputs: Sequence[InferInput], parameters: Parameters | None) -> list[NamedArray]:
    """The arrays that a request means. ``parameters``: of the request.
    Raises InvalidInput if an input is not what its content type says, or the content type is unknown.
    """
    of_all = (parameters or {}).get(CONTENT_TYPE)
    return [_decoded(given, (given.parameters or {}).get(CONTENT_TYPE, of_all), given.as_numpy()) for given in inputs]


def _decoded(given: InferInput, content_type: Any, array: Array) -> NamedArray:
    if content_type is None or content_type in AS_IT_IS:
        return given.name, given.datatype, array
    what = f"input '{given.name[:MAX_SHOWN]}'"
    decode = DECODERS.get(content_type)
    if decode is None:
        expected = ", ".join((*AS_IT_IS, *DECODERS))
        raise InvalidInput(f"{what}: the content type {show(content_type)} is unknown, expected one of {expected}")
    if given.datatype != "BYTES":
        raise InvalidInput(f"{what} is {given.datatype}, expected BYTES for the content type {content_type}")
    try:
        elements = [None if element is None else decode(element) for element in array.ravel().tolist()]
    except (ValueError, binascii.Error) as error:  # UnicodeDecodeError is a ValueError
        raise InvalidInput(f"{what} is no {content_type}: {error}") from None
    if decode is _moment:
        return given.name, given.datatype, np.array(elements, "datetime64[us]").reshape(array.shape)
    return given.name, given.datatype, array_of_objects(elements).reshape(array.shape)


def _base64(element: bytes) -> bytes:
    return base64.b64decode(element, validate=True)


def _moment(element: bytes) -> datetime:
    """A moment in ISO 8601; with an offset, in UTC: numpy knows no zones."""
    text = element.decode()
    moment = datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text)
    return moment if moment.tzinfo is None else moment.astimezone(timezone.utc).replace(tzinfo=None)


AS_IT_IS = ("np", TABLE)
DECODERS: Mapping[Any, Callable[[bytes], Any]] = {"str": bytes.decode, "base64": _base64, "datetime": _moment}
