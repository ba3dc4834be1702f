"""Checks tensors against a model's declaration: the inputs that the model gets, and the outputs that it returns.

No other module checks this, for any format. Knows no format and no request.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.array_likes import by_name, frame_columns, is_frame, to_numpy
from mpserve.protocol.datatypes import FIXED, NUMBERS, Array, cast, datatype_of
from mpserve.protocol.declaration import Tensor, allows
from mpserve.protocol.tensors import NamedArray

WHOLE = (np.ndarray, dict, tuple, list, str, bytes)  # most answers; to test for an iterator costs ten times as much
STREAMS = (Iterator, AsyncIterator)
UNNAMED = "output-"  # begins the names of undeclared outputs
FIRST = UNNAMED + "0"


def is_stream(result: object) -> bool:
    return not isinstance(result, WHOLE) and isinstance(result, STREAMS)


def fit_inputs(declared: Sequence[Tensor], given: list[NamedArray]) -> list[Array]:
    """The arrays for the model, in the order of its declaration. The declared shapes are tuples.
    Raises InvalidInput if the inputs do not fit the declaration; the message names the input, the expected and the actual.
    """
    if len(given) == len(declared):
        arrays = []
        for number, (name, datatype, array) in enumerate(given):
            tensor = declared[number]
            if name != tensor.name or datatype != tensor.datatype or not allows(tensor.shape, array.shape):
                break
            arrays.append(array)
        else:
            return arrays
    return _reordered(declared, given)


def _reordered(declared: Sequence[Tensor], given: list[NamedArray]) -> list[Array]:
    """As ``fit_inputs``, for inputs in another order, or inputs that do not fit."""
    by_name = {name: (datatype, array) for name, datatype, array in given}
    arrays = []
    for tensor in declared:
        if tensor.name not in by_name:
            raise _misnamed(by_name, declared)
        datatype, array = by_name[tensor.name]
        if datatype != tensor.datatype:
            raise InvalidInput(f"input {tensor.name!r}: expected datatype {tensor.datatype}, got {datatype}")
        if not tensor.fits(array.shape):
            rows = "; the first dimension counts the rows" if array.shape == tensor.shape[1:] else ""
            raise InvalidInput(
                f"input {tensor.name!r}: expected shape {list(tensor.shape)}, got {list(array.shape)}{rows}"
            )
        arrays.append(array)
    if len(by_name) > len(declared):
        raise _misnamed(by_name, declared)
    return arrays


def _misnamed(given: Iterable[str], declared: Sequence[Tensor]) -> InvalidInput:
    names = [tensor.name for tensor in declared]
    unexpected = [name for name in given if name not in names]
    what = f"unexpected input {unexpected[0]!r}" if unexpected else f"missing input {min(set(names) - set(given))!r}"
    return InvalidInput(f"{what}; expected {', '.join(map(repr, names))}")


def fit_outputs(declared: Sequence[Tensor], result: Any) -> list[NamedArray]:
    """The tensors that a model has returned: an array or what can be made one, a tuple of them, a dict of them by name, a
    named tuple, a table, or a list of dicts. The declared shapes are tuples. Raises InferenceError if the outputs do not fit the
    declaration, or V2 has no datatype for an array; the message names the output, the expected and the actual.
    """
    if not declared and type(result) is np.ndarray:
        datatype = NUMBERS.get(result.dtype)
        if datatype is not None:
            return [(FIRST, datatype, result)]
    if len(declared) == 1 and type(result) is np.ndarray:  # most answers
        name, datatype, shape, *_ = declared[0]
        if result.dtype is FIXED.get(datatype) and allows(shape, result.shape):
            return [(name, datatype, result)]
    if result is None:
        raise InferenceError("the model returned None, expected an array, a tuple, a dict or a table")
    try:
        result = _as_dict(declared, result)
    except InvalidInput as error:
        raise InferenceError(f"the model's answer: {error}") from error
    named = _declared_outputs(declared, result) if declared else _undeclared_outputs(result)
    return [(name, _datatype(name, array), array) for name, array in named]


def _datatype(name: str, array: Array) -> str:
    try:
        return datatype_of(array.dtype)
    except InvalidInput as error:  # not the client's fault
        raise InferenceError(f"output {name!r}: {error}") from error


def _as_dict(declared: Sequence[Tensor], result: Any) -> Any:
    """A result that names its outputs as a dict by name; any other result as it is."""
    if isinstance(result, dict):
        return by_name(result.items())
    if isinstance(result, WHOLE):
        if type(result) is list and result and type(result[0]) is dict and set(map(type, result)) == {dict}:
            return _of_records(result)
        fields = getattr(result, "_fields", ())  # of a named tuple
        is_by_name = fields and (not declared or set(fields) == {tensor.name for tensor in declared})
        return dict(zip(fields, result, strict=True)) if is_by_name else result
    if hasattr(result, "detach"):  # a tensor
        return result
    if hasattr(result, "collect") and hasattr(result, "collect_schema"):  # a lazy table of polars
        result = result.collect()
    if not is_frame(result):
        return result
    columns = frame_columns(result)
    if len(declared) != 1 or declared[0].name in columns:
        return columns
    return (
        next(iter(columns.values())) if len(columns) == len(declared[0].shape) == 1 else result
    )  # the table as a matrix


def _of_records(records: list[dict[Any, Any]]) -> dict[str, Any]:
    names = by_name((name, name) for name in records[0])
    for index, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise InvalidInput(f"element {index} of the list has the keys {list(record)}, expected {list(names)}")
    return {name: [record[key] for record in records] for name, key in names.items()}


def _undeclared_outputs(result: Any) -> list[tuple[str, Array]]:
    if not isinstance(result, dict):
        values = result if isinstance(result, tuple) else (result,)
        result = {f"{UNNAMED}{index}": value for index, value in enumerate(values)}
    return [(name, _array(name, value)) for name, value in result.items()]


def _declared_outputs(declared: Sequence[Tensor], result: Any) -> list[tuple[str, Array]]:
    names = [tensor.name for tensor in declared]
    if isinstance(result, dict):
        if set(result) != set(names):
            raise InferenceError(f"the model returned outputs {sorted(map(str, result))}; it declares {names}")
        values = tuple(result[name] for name in names)
    else:
        values = (result,) if len(declared) == 1 and not isinstance(result, tuple) else result
        if not isinstance(values, tuple | list) or len(values) != len(declared):
            got = f"{len(values)}" if isinstance(values, tuple | list) else f"one {type(result).__name__}"
            raise InferenceError(f"the model returned {got} outputs; it declares {len(declared)}: {', '.join(names)}")
    return [(tensor.name, _as_declared(tensor, value)) for tensor, value in zip(declared, values, strict=True)]


def _as_declared(tensor: Tensor, value: Any) -> Array:
    name, datatype, shape, *_ = tensor
    if type(value) is np.ndarray and value.dtype is FIXED.get(datatype):
        array: Array = value
    else:
        array = _array(name, value)
        try:
            array = cast(array, datatype)
        except InvalidInput as error:
            has_nan = array.dtype.kind == "f" and bool(np.isnan(array).any())
            beside = "; it holds NaN, or a value is missing" if has_nan else ""
            raise InferenceError(f"output {name!r} is declared {datatype}: {error}{beside}") from error
    if not tensor.fits(array.shape):
        raise InferenceError(
            f"output {name!r} is declared with shape {list(shape)}, the model gave {list(array.shape)}"
        )
    return array


def _array(name: str, value: Any) -> Array:
    if value is None:
        raise InferenceError(f"output {name!r}: the model returned None, expected an array")
    try:
        return to_numpy(value)
    except InvalidInput as error:
        raise InferenceError(f"output {name!r}: {error}") from error
