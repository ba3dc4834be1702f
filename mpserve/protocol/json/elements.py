"""Checks a tensor's `shape` and `data` from JSON, and makes the array.

No value is wrapped, cut or guessed. Whole lists are checked at C speed; Python looks at single elements only to name the
wrong element. Knows neither messages nor bytes.

Source: Open Inference Protocol, "Tensor Data" (inference_rest.md).
"""

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import MAX_RANK, Array, narrow, numpy_dtype, out_of_range
from mpserve.protocol.json.documents import describe, show
from mpserve.protocol.json.numbers import Numbers

MAX_ELEMENTS = 2**40  # more than any body can hold, and few enough for numpy to index
MAX_EXACT = 2**53  # FP64 holds every integer up to here
FEW = 64  # floats that are compared in Python: to have numpy check an array of any size costs 3 µs
FP32_END = 3.4028235e38  # from 3.40282357e38 on a number becomes infinite

# By numpy's kind of the datatype: the JSON values taken, as Python types and in words.
_ELEMENT_TYPES: dict[str, tuple[frozenset[type], str]] = {
    "b": (frozenset({bool}), "true or false"),
    "i": (frozenset({int}), "an integer"),
    "u": (frozenset({int}), "an integer"),
    "f": (frozenset({int, float}), "a number"),
    "O": (frozenset({str}), "a string"),
}


def check_shape(shape: Sequence[int]) -> None:
    """Refuse a shape that no tensor of a request can have.
    Raises InvalidInput: a size that is negative or no integer, more than 32 dimensions, more than 2**40 elements (a size of 0
    counted as 1, so that numpy can index it all the same).
    """
    if len(shape) > MAX_RANK:  # first, since the product of 50,000 large sizes, 1 MB of JSON, takes 11 s
        raise InvalidInput(f"shape has {len(shape)} dimensions, expected at most {MAX_RANK}")
    elements = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidInput(f"shape holds {show(size)}, expected integers of 0 or more")
        elements *= size or 1
    if elements > MAX_ELEMENTS:
        raise InvalidInput(f"shape {show_shape(shape)} is too large, expected at most {MAX_ELEMENTS} elements")


def show_shape(shape: Sequence[int]) -> str:
    return f"[{','.join(map(str, shape))}]"


def decode_data(data: Any, datatype: str, shape: list[int], nullable: bool = False) -> Array:
    """The array of a JSON `data`, which is flat or nested as the shape says. If it is `nullable`, null is a missing value.
    Raises InvalidInput: not a list, not of that shape, or an element that the datatype cannot hold.
    """
    if isinstance(data, Numbers):
        array = _numbers(data, datatype, shape)
        if array is not None:
            return array
        data = data.to_list()
    if not isinstance(data, list):
        got = "missing" if data is None else describe(data)
        raise InvalidInput(f"data is {got}, expected a list of {prod(shape)} elements")
    elements = _flatten(data, shape)
    if nullable and None in elements:
        present = [element for element in elements if element is not None]
        return with_missing([element is None for element in elements], _array(present, datatype)).reshape(shape)
    return _array(elements, datatype).reshape(shape)


def with_missing(missing: Sequence[bool], present: Array) -> Array:
    """The elements that are `present`, with missing elements between them: NaN among numbers, else None.
    Integers become FP64. Raises InvalidInput if an integer is too large for that.
    """
    if present.dtype.kind in "iu":
        array = present.astype(np.float64)
        if present.size and max(abs(int(present.max())), abs(int(present.min()))) > MAX_EXACT:
            raise InvalidInput(f"an integer beyond {MAX_EXACT} cannot be kept beside null, expected smaller integers")
        present = array
    is_number = present.dtype.kind not in "bO"
    whole = np.full(len(missing), np.nan if is_number else None, present.dtype if is_number else object)
    whole[~np.array(missing, bool)] = present
    return whole


def _numbers(data: Numbers, datatype: str, shape: list[int]) -> Array | None:
    """The array of the numbers; None if the list must be looked at, perhaps to name its fault."""
    dtype = numpy_dtype(datatype)
    if dtype.kind in "bO":
        return None
    flat = data.flat("u" if datatype == "UINT64" else "i" if dtype.kind in "iu" else "d", shape)
    if flat is None or flat.size != prod(shape):
        return None
    if dtype.kind in "iu":
        return narrow(flat, datatype).reshape(shape)
    with np.errstate(all="ignore"):
        array = flat.astype(dtype, copy=False)
    return array.reshape(shape) if np.isfinite(array).all() else None


def _flatten(data: list[Any], shape: list[int]) -> list[Any]:
    if not data or not isinstance(data[0], list):
        if len(data) != prod(shape):
            raise InvalidInput(f"expected {prod(shape)} elements for shape {show_shape(shape)}, got {len(data)}")
        return data
    level = [data]
    for dimension, size in enumerate(shape):
        if set(map(type, level)) - {list} or set(map(len, level)) - {size}:
            misfit = next(item for item in level if not isinstance(item, list) or len(item) != size)
            got = f"a list of {len(misfit)}" if isinstance(misfit, list) else show(misfit)
            raise InvalidInput(
                f"data is not nested as shape {show_shape(shape)}:"
                f" expected a list of {size} in dimension {dimension}, got {got}"
            )
        level = list(chain.from_iterable(level))
    return level


def _array(elements: list[Any], datatype: str) -> Array:
    dtype = numpy_dtype(datatype)
    # numpy files bfloat16, which is not its own, under kind "V".
    kind = "f" if datatype == "BF16" else dtype.kind
    types, wanted = _ELEMENT_TYPES[kind]
    # numpy would take true as 1, "1.5" as 1.5 and null as NaN, so nothing goes to it unchecked.
    if not _types(elements) <= types:
        index, got = next((index, item) for index, item in enumerate(elements) if type(item) not in types)
        raise InvalidInput(f"element {index} of data is {show(got)}, expected {wanted} for {datatype}")
    if kind == "O":
        return np.array(list(map(str.encode, elements)), dtype=dtype)
    if kind in "iu":
        return _integers(elements, datatype)
    if datatype == "FP64" or (datatype == "FP32" and 0 < len(elements) <= FEW and _fit_fp32(elements)):
        return np.array(elements, dtype=dtype)
    with np.errstate(all="ignore"):
        if datatype == "BF16":
            # By way of FP64: BF16 refuses integers of more than 64 bits signed.
            array = np.fromiter(elements, np.float64, len(elements)).astype(dtype)
        else:
            array = np.fromiter(elements, dtype, len(elements))
    if kind == "f" and not np.isfinite(array).all():
        index = int(np.isfinite(array).argmin())
        raise out_of_range(index, elements[index], datatype)
    return array


def _fit_fp32(elements: list[Any]) -> bool:
    return bool(min(elements) > -FP32_END and max(elements) < FP32_END)


def _types(elements: list[Any]) -> set[type]:
    types = list(map(type, elements))
    # Counting one type takes half the time of building a set, and most lists hold one only.
    return {types[0]} if types and types.count(types[0]) == len(types) else set(types)


def _integers(elements: list[int], datatype: str) -> Array:
    try:
        return narrow(np.fromiter(elements, np.int64, len(elements)), datatype)
    except OverflowError:
        if datatype == "UINT64" and min(elements) >= 0:
            return np.array(elements, dtype=np.uint64)
        limits = np.iinfo(numpy_dtype(datatype))
        outside = ((index, item) for index, item in enumerate(elements) if not limits.min <= item <= limits.max)
        raise out_of_range(*next(outside), datatype) from None
