"""The datatypes of the V2 protocol and their numpy dtypes, in one table, and the conversions between them.

A conversion keeps every value or refuses: it wraps no integer and cuts no fraction. Knows neither JSON syntax nor messages.

Source: Open Inference Protocol, "Tensor Data Types" (inference_rest.md).
"""

from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpserve.errors import InvalidInput

Array = NDArray[Any]
NonFinite = Literal["error", "null"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}
_DATATYPES = {dtype: datatype for datatype, dtype in _DTYPES.items()}
FIXED = {datatype: dtype for datatype, dtype in _DTYPES.items() if datatype != "BYTES"}
"""The datatypes whose elements have one size and a dtype of numpy itself."""
NUMBERS = {dtype: datatype for datatype, dtype in FIXED.items()}
"""Its inverse."""
LITTLE = {datatype: np.dtype(dtype.newbyteorder("<").str) for datatype, dtype in FIXED.items()}
"""Little-endian dtypes. On a little-endian machine they are the same objects as in ``FIXED``."""

DATATYPES = (*_DTYPES, "BF16")
MAX_RANK = 32  # dimensions of a tensor; numpy before 2.0 stops there


def numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The numpy dtype of a V2 datatype (upper case): ``FP32`` is float32, ``BYTES`` is object (elements of ``bytes``).
    Raises InvalidInput if the datatype is unknown, or is BF16 and the package ml_dtypes is not installed.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is not None:
        return dtype
    if datatype == "BF16":
        return _bfloat16()
    raise InvalidInput(f"unknown datatype '{datatype[:40]}', expected one of {' '.join(DATATYPES)}{_meant(datatype)}")


def _meant(name: str) -> str:
    """The datatype of a name that numpy has, such as ``float32``. ``float`` has 32 bits for some libraries and 64 for others."""
    if len(name) > len("complex128") or not (name.isalnum() and name[-1].isdigit()):
        return ""
    try:
        return f"; did you mean {datatype_of(np.dtype(name.lower()))}?"
    except (InvalidInput, TypeError, ValueError):
        return ""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The V2 datatype of a numpy dtype in any byte order; text, bytes, objects and datetime64 are BYTES, as in the SDK.
    Raises InvalidInput: V2 has no datatype for it (complex, records, longdouble).
    """
    datatype = _DATATYPES.get(dtype)
    if datatype is not None:
        return datatype
    if dtype.kind in "SUM":
        return "BYTES"
    if dtype.name == "bfloat16":
        return "BF16"
    datatype = _DATATYPES.get(dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidInput(f"numpy dtype {dtype} has no V2 datatype, expected one of {' '.join(DATATYPES)}")
    return datatype


def array_of_objects(elements: Sequence[Any]) -> Array:
    """A column of these objects. It is filled, since numpy would make dimensions of elements that are lists."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def cast(array: Array, datatype: str) -> Array:
    """The array as `datatype`, without a copy if it has that datatype.
    Integers are taken as any integer datatype that holds them all, integers and floats as any float datatype (rounded;
    beyond its range they become infinite). Text becomes its UTF-8 bytes, dates and times their ISO 8601 form (SDK).
    Raises InvalidInput: unknown datatype, a value out of its range, or elements of another kind.
    """
    dtype = numpy_dtype(datatype)
    if array.dtype == dtype and datatype != "BYTES":
        return array
    if datatype == "BYTES":
        return _cast_to_bytes(array)
    if array.size == 0 or (array.dtype.kind == "b" and dtype.kind in "iu"):
        return array.astype(dtype)
    if dtype.kind in "iu" and array.dtype.kind in "iu":
        return narrow(array, datatype)
    if _is_float(dtype) and (array.dtype.kind in "biu" or _is_float(array.dtype)):
        with np.errstate(all="ignore"):
            return array.astype(dtype)
    raise InvalidInput(f"elements of numpy dtype {array.dtype} cannot be taken as {datatype}")


def narrow(array: Array, datatype: str) -> Array:
    """An integer array as another integer datatype.
    Raises InvalidInput: an element is out of range; the message names the one that is furthest out.
    """
    dtype = numpy_dtype(datatype)
    if array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        for index in (int(array.argmin()), int(array.argmax())):
            value = int(array.item(index))
            if not limits.min <= value <= limits.max:
                raise out_of_range(index, value, datatype)
    return array.astype(dtype, copy=False)


def out_of_range(index: int, value: object, datatype: str) -> InvalidInput:
    """The error for an element, with the limits of an integer datatype."""
    dtype = numpy_dtype(datatype)
    limits = f" ({np.iinfo(dtype).min} to {np.iinfo(dtype).max})" if dtype.kind in "iu" else ""
    return InvalidInput(f"element {index} of data is {value}, out of range for {datatype}{limits}")


class Document(bytes):
    """An element of BYTES that is JSON text. V1 has the value in its answer, and V2 the text."""


def decode_text(array: Array, or_none: bool = False) -> Array:
    """A BYTES array as an object array of ``str`` of the same shape; UnicodeDecodeError where it is not UTF-8.
    A missing text is None, and stays so if ``or_none``, else TypeError.
    """
    elements = array.ravel().tolist()
    if or_none and None in elements:
        texts = [None if element is None else element.decode() for element in elements]
    else:
        texts = list(map(bytes.decode, elements))
    return np.array(texts, dtype=object).reshape(array.shape)


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no text. Completes "the output ..."."""
    return f"holds bytes that are not UTF-8 ({error})"


def json_values(array: Array, nonfinite: NonFinite = "error") -> Array | list[Any] | str:
    """A tensor's values as JSON can carry them: BYTES as nested lists of text (of rank 0: text), FP16 and BF16 as FP32.
    With `nonfinite` "null", NaN, infinity and missing texts are left to the JSON writer, which makes them null.
    Raises ValueError: it holds what JSON cannot carry; the message completes "the output ...".
    """
    if array.dtype.kind == "O":
        try:
            texts: list[Any] | str = decode_text(array, or_none=nonfinite == "null").tolist()
        except UnicodeDecodeError as error:
            raise ValueError(f"{not_utf8(error)}, which JSON cannot carry") from None
        except TypeError:
            raise ValueError("holds a missing text, for which there is null if --nonfinite allows it") from None
        return texts
    if not _is_float(array.dtype):
        return array
    if array.dtype.itemsize == 2:
        array = array.astype(np.float32)
    if nonfinite == "error" and not np.isfinite(array).all():
        raise ValueError("holds NaN or infinity, which JSON cannot carry")
    return array


def _cast_to_bytes(array: Array) -> Array:
    if array.dtype.kind == "M":
        array = array.astype(str)
    elif array.size and array.dtype.kind not in "SUO":
        raise InvalidInput(f"elements of numpy dtype {array.dtype} cannot be taken as BYTES")
    elements = array.ravel().tolist()
    others = set(map(type, elements)) - {bytes, str, type(None), Document}
    if others and all(issubclass(kind, date) for kind in others):  # a datetime is a date
        elements = [element.isoformat() if isinstance(element, date) else element for element in elements]
    elif others:
        names = ", ".join(sorted(kind.__name__ for kind in others))
        raise InvalidInput(f"elements of type {names} cannot be taken as BYTES, expected bytes or str")
    if array.dtype.kind == "O" and str not in set(map(type, elements)):
        return array
    encoded = [element.encode() if isinstance(element, str) else element for element in elements]
    return np.array(encoded, dtype=object).reshape(array.shape)


def _is_float(dtype: np.dtype[Any]) -> bool:
    # numpy files bfloat16, which is not its own, under kind "V" (void).
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise InvalidInput("BF16 needs the Python package ml_dtypes on the server, where it is not installed") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
