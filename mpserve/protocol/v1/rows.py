"""V1's instances as the tensors of a model, which may declare its inputs.

``instances`` is the rows of the only input, or a list of objects with one entry per input. Bytes are ``{"b64": ...}``, as in
TF-Serving. Knows no model: ``serving/fitting/fit.py`` compares the tensors with the declaration.

Source: TensorFlow Serving's REST API, "Predict API", "Encoding binary values".
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import FIXED, Array, cast, datatype_of, narrow, numpy_dtype
from mpserve.protocol.declaration import Declared, Tensor, nullable
from mpserve.protocol.json import plain
from mpserve.protocol.json.elements import FP32_END, with_missing
from mpserve.protocol.json.numbers import UNSIGNED, Kind, Numbers
from mpserve.protocol.tensors import NamedArray

FEW = 16  # elements up to which a look at each in Python costs less than to watch a cast for overflow
_READ_AS: dict[str, Kind] = {"f": "any", "i": "i", "u": "u"}
_KINDS = {
    datatype: "d" if datatype == "FP64" else _READ_AS[dtype.kind]
    for datatype, dtype in FIXED.items()
    if dtype.kind in _READ_AS
}
"""By datatype: the kind of its numbers. Short floats are read as they are, so that no large integer is rounded twice."""

_NUMBERS_OR_LISTS = frozenset({int, float, list})
_UNNAMED = "0"


def read_plain(declared: Sequence[Tensor], body: bytes) -> list[NamedArray] | None:
    """The tensor in a body with the rows of one input; None if the body is not plain."""
    array = _plain_rows(declared, body)
    # In a matrix, an integer beside a float is a float. A float has a point in most texts, and an integer has none.
    if array is None or (_is_rounded(declared, array) and body.count(b".") < array.size):
        return None
    return [_named(declared, array)]


def _is_rounded(declared: Sequence[Tensor], array: Array) -> bool:
    """Whether columns of integers may have become floats in a matrix, where the model wants columns."""
    return isinstance(declared, Declared) and declared.by_column and array.ndim == 2 and array.dtype.kind == "f"


def _named(declared: Sequence[Tensor], array: Array) -> NamedArray:
    if declared:
        return declared[0].name, declared[0].datatype, array
    return _UNNAMED, datatype_of(array.dtype), array


def tensors_in(declared: Sequence[Tensor], document: Any) -> list[NamedArray]:
    """The tensors in a V1 document, whose instances may be ``Numbers``.
    Raises InvalidInput if there are no instances, or they do not fit the declaration; the message names the input.
    """
    rows = document.get("instances", document.get("inputs")) if isinstance(document, dict) else None
    if isinstance(rows, Numbers):
        array = _of_numbers(declared, rows.array) if len(declared) < 2 else None
        if array is None or _is_rounded(declared, array):
            array, rows = None, rows.to_list()
    else:
        array = _of_rows(declared, rows) if len(declared) < 2 else None
    if array is not None and not _is_rounded(declared, array):
        return [_named(declared, array)]
    if not isinstance(rows, list):
        got = f", got {', '.join(map(repr, document)):.100}" if isinstance(document, dict) and document else ""
        raise InvalidInput(f'expected a JSON object with a list of "instances"{got}')
    if len(declared) != 1 and rows and isinstance(rows[0], list) and rows[0] and _is_object(rows[0][0]):
        rows = _rows_of_tables(rows)
    if rows and _is_object(rows[0]):
        names = [tensor.name for tensor in declared] or list(
            dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
        )
        if not names:
            raise InvalidInput("expected each of the instances to be an object with one entry per input, got {}")
        _refuse_others(rows, names)
        return [
            _column(declared, index, name, [_field(declared, row, name, names) for row in rows])
            for index, name in enumerate(names)
        ]
    if len(declared) > 1:
        return _columns(declared, rows, len(declared))
    if not declared and _are_mixed(rows, isinstance(declared, Declared) and declared.by_column):
        return _columns(declared, rows, len(rows[0]))
    return [_column(declared, 0, declared[0].name if declared else _UNNAMED, rows)]


def _plain_rows(declared: Sequence[Tensor], body: bytes) -> Array | None:
    if len(declared) > 1:
        return None
    if len(body) >= plain.FEW_BYTES:
        return _of_numbers(declared, partial(plain.read_instances, body))
    rows = plain.read_few_instances(body)
    floats = plain.floats(rows, body.count(plain.POINT), declared[0].datatype if declared else "FP64")
    return _of_rows(declared, rows) if floats is None else floats


def _of_numbers(declared: Sequence[Tensor], read: Callable[[Kind], Array | None]) -> Array | None:
    """The array that ``read`` gives; None if its numbers need a closer look, perhaps to name a fault."""
    if not declared:
        return read("any")
    kind = _KINDS.get(declared[0].datatype)
    array = None if kind is None else read(kind)
    if array is None:
        return None
    dtype = FIXED[declared[0].datatype]
    if dtype.kind in "iu":
        try:
            return narrow(array, declared[0].datatype)
        except InvalidInput:
            return None
    return _as_floats(array, dtype)


def _of_rows(declared: Sequence[Tensor], rows: Any) -> Array | None:
    """As ``_of_numbers``, for a value that may be a list of numbers."""
    if type(rows) is not list or not rows:
        return None
    if type(rows[0]) not in _NUMBERS_OR_LISTS:
        return None
    try:
        array = np.array(rows)
    except (ValueError, OverflowError):
        return None
    kind = array.dtype.kind
    if not declared:
        return array if kind == "i" or (kind == "f" and array.size and array.max() < UNSIGNED) else None
    dtype = FIXED.get(declared[0].datatype)
    if dtype is None or dtype.kind != "f" or kind not in "iuf":
        return None
    return _as_floats(array, dtype)


def _as_floats(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Finite numbers as a float dtype; None if a number does not fit."""
    if dtype.itemsize == 8 or (dtype.itemsize == 4 and (array.dtype.kind != "f" or _are_few_fp32(array))):
        return array.astype(dtype, copy=False)
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        return None


def _are_few_fp32(array: Array) -> bool:
    """Whether there are few elements, and all fit FP32. Squares would not do: numpy 2 warns if they overflow."""
    if not 0 < array.size <= FEW:
        return False
    elements = array.ravel().tolist()
    return bool(min(elements) > -FP32_END and max(elements) < FP32_END)


def unnamed(names: Sequence[str]) -> bool:
    """Whether these are the names of inputs that the client has not named: rows of V1."""
    return list(names) == [str(index) for index in range(len(names))]


def _are_mixed(rows: list[Any], by_column: bool) -> bool:
    """Whether the rows are the columns of a table and no tensor: they hold text beside other values. For a model that wants
    columns, anything but numbers of one kind.
    """
    if not rows or not all(isinstance(row, list) and row for row in rows):
        return False
    types = {type(value) for row in rows for value in row}
    if types & {list, dict}:
        return False
    if by_column:
        return len(types) > 1 and not types <= {float, type(None)}
    return str in types and len(types - {type(None)}) > 1


def _columns(declared: Sequence[Tensor], rows: list[Any], count: int) -> list[NamedArray]:
    """Rows of one value for each input."""
    names = [tensor.name for tensor in declared] or [str(index) for index in range(count)]
    if any(len(tensor.shape) > 2 for tensor in declared) or not all(isinstance(row, list) for row in rows):
        raise InvalidInput(f"expected each of the instances to be an object with {', '.join(map(repr, names))}")
    for row in rows:
        if len(row) != count:
            expected = f" ({', '.join(map(repr, names))})" if declared else ""
            raise InvalidInput(f"expected rows of {count} values{expected}, got {len(row)}")
    columns = [_column(declared, index, names[index], [row[index] for row in rows]) for index in range(count)]
    return [
        (
            name,
            datatype,
            array.reshape(-1, 1) if declared and len(declared[index].shape) == 2 and array.ndim == 1 else array,
        )
        for index, (name, datatype, array) in enumerate(columns)
    ]


def _rows_of_tables(tables: list[Any]) -> list[Any]:
    """The rows of instances that are tables: lists of objects. What an object lacks is missing, as in KServe's servers."""
    if not all(isinstance(table, list) for table in tables):
        raise InvalidInput("expected each of the instances to be a list of objects, as the first one is")
    rows = [row for table in tables for row in table]
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    return [{**dict.fromkeys(names), **row} if isinstance(row, dict) else row for row in rows]


def _refuse_others(rows: list[Any], names: Sequence[str]) -> None:
    known = set(names)
    for row in rows:
        if isinstance(row, dict) and not row.keys() <= known:
            if {"name", "datatype", "data"} <= row.keys():
                raise InvalidInput("the body is a V2 request; POST it to /v2/models/NAME/infer")
            other = next(name for name in row if name not in known)
            raise InvalidInput(f"unexpected input {other!r}; expected {', '.join(map(repr, names))}")


def _field(declared: Sequence[Tensor], row: Any, name: str, names: Sequence[str]) -> Any:
    if not isinstance(row, dict) or (name not in row and not (declared and nullable(declared, name))):
        raise InvalidInput(f"expected each of the instances to be an object with {', '.join(map(repr, names))}")
    value = row.get(name)
    # What pandas' DataFrame.to_dict() gives, which KServe's servers take.
    return list(value.values()) if isinstance(value, dict) and value and all(map(str.isdecimal, value)) else value


def _column(declared: Sequence[Tensor], index: int, name: str, values: list[Any]) -> NamedArray:
    """The values of one input in all instances, as an array of its declared datatype."""
    shown = repr(name) if declared else str(index)
    decoded = [_decoded(value) for value in values] if _holds_base64(values) else values
    try:
        array = np.array(decoded)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"input {shown}: expected instances of one shape: numbers, booleans or strings") from error
    if array.dtype.kind == "O" and nullable(declared, name):
        return _with_missing(declared, index, name, array)
    if array.dtype.kind == "f" and (not declared or declared[index].datatype == "UINT64"):
        array = _unsigned(array, decoded)
    if array.dtype.kind not in "biufUS":
        got = _kinds(array.ravel().tolist())
        raise InvalidInput(f"input {shown}: expected numbers, booleans or strings, got {got}")
    if array.dtype.kind in "US":
        if declared and declared[index].datatype != "BYTES":
            raise InvalidInput(f"input {shown}: expected numbers for {declared[index].datatype}, got a string")
        # numpy turns [1, "a"] into text, and its own text types cut trailing zeros off.
        array = np.array(decoded, dtype=object)
    try:
        cast_array = cast(array, declared[index].datatype if declared else datatype_of(array.dtype))
    except InvalidInput as error:
        raise InvalidInput(f"input {shown}: {error}") from error
    if cast_array.dtype.kind not in "biuO" and not np.isfinite(cast_array).all():
        raise InvalidInput(f"input {shown}: a value is out of range for {datatype_of(cast_array.dtype)}")
    return name, datatype_of(cast_array.dtype), cast_array


def _with_missing(declared: Sequence[Tensor], index: int, name: str, array: Array) -> NamedArray:
    elements = array.ravel().tolist()
    missing = [element is None for element in elements]
    if not any(missing):
        raise InvalidInput(f"input {name!r}: expected numbers, booleans or strings, got {_kinds(elements)}")
    present = [element for element in elements if element is not None]
    if present:
        _, datatype, held = _column(declared, index, name, present)
    else:
        datatype = declared[index].datatype if declared else "FP64"
        held = np.empty(0, numpy_dtype(datatype))
    try:
        return name, datatype, with_missing(missing, held).reshape(array.shape)
    except InvalidInput as error:
        raise InvalidInput(f"input {name!r}: {error}") from None


def _unsigned(array: Array, values: list[Any]) -> Array:
    """The array of these values; integers that need 64 bits unsigned stay integers, where numpy makes floats."""
    if not (array >= UNSIGNED).any():
        return array
    objects = np.array(values, dtype=object)
    elements = objects.ravel().tolist()
    return objects.astype(np.uint64) if set(map(type, elements)) == {int} and min(elements) >= 0 else array


def _kinds(values: list[Any]) -> str:
    names = {type(None): "null", dict: "an object", list: "a list"}
    return " and ".join(sorted({names.get(type(value), type(value).__name__) for value in values}))


def _holds_base64(values: list[Any]) -> bool:
    return dict in set(map(type, values)) and any(_is_base64(value) for value in values)


def _is_object(value: Any) -> bool:
    """Whether a value is an object with an entry for each input."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _decoded(value: Any) -> Any:
    """``{"b64": ...}``, TF-Serving's spelling of bytes in V1 JSON, decoded; anything else as it is."""
    if not _is_base64(value):
        return value
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise InvalidInput(f'"b64" holds no valid base64: {error}') from error
