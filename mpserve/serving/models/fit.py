"""Checks tensors against a model's declaration: the inputs that the model gets, and the outputs that it returns.

No other module checks this, for any format. Arrays of other frameworks are recognised by their methods (``detach``, ``cpu``,
``numpy``), not by importing the framework. Knows no format and no request.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import FIXED, Array, cast, datatype_of
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
            raise InvalidInput(f"input {tensor.name!r}: expected shape {list(tensor.shape)}, got {list(array.shape)}")
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
    """The tensors that a model has returned: an array, a tuple of arrays or a dict by name, or nested lists of numbers.
    The declared shapes are tuples. Raises InferenceError if the outputs do not fit the declaration, or V2 has no datatype for
    an array; the message names the output, the expected and the actual.
    """
    if not declared and type(result) is np.ndarray:
        return [(FIRST, _datatype(FIRST, result), result)]
    if len(declared) == 1 and type(result) is np.ndarray:  # most answers
        name, datatype, shape, *_ = declared[0]
        if result.dtype is FIXED.get(datatype) and allows(shape, result.shape):
            return [(name, datatype, result)]
    return [(name, _datatype(name, array), array) for name, array in _named(declared, result)]


def _datatype(name: str, array: Array) -> str:
    try:
        return datatype_of(array.dtype)
    except InvalidInput as error:  # not the client's fault
        raise InferenceError(f"output {name!r}: {error}") from error


def _named(declared: Sequence[Tensor], result: Any) -> list[tuple[str, Array]]:
    if not declared:
        if isinstance(result, dict):
            return [(str(name), to_numpy(value)) for name, value in result.items()]
        values = result if isinstance(result, tuple) else (result,)
        return [(f"{UNNAMED}{index}", to_numpy(value)) for index, value in enumerate(values)]
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
        try:
            array = cast(to_numpy(value), datatype)
        except InvalidInput as error:
            raise InferenceError(f"output {name!r} is declared {datatype}: {error}") from error
    if not tensor.fits(array.shape):
        raise InferenceError(
            f"output {name!r} is declared with shape {list(shape)}, the model gave {list(array.shape)}"
        )
    return array


def to_numpy(value: Any) -> Array:
    """A numpy array from an array-like value: numpy, torch tensors on any device, pandas, nested lists."""
    if type(value) is np.ndarray:
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            return np.asarray(value.numpy())
        except TypeError:  # bfloat16 has no numpy counterpart
            return np.asarray(value.float().numpy())
    return np.asarray(value)
