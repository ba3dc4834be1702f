"""From a payload to the arrays that a tensor model takes, and from what it returns to a response.

This is where a V1 payload (``instances``) or a V2 request becomes arrays, and arrays become an ``InferResponse`` again.
Arrays of other frameworks are recognised by what they can do (``detach``, ``cpu``, ``numpy``), not by importing the
framework.
"""

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput
from mpserve.protocol import plain
from mpserve.protocol.datatypes import FIXED, Array, cast, datatype_of, narrow, numpy_dtype
from mpserve.protocol.elements import FP32_END
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.protocol.numbers import UNSIGNED, Kind, Numbers
from mpserve.serving.tally import INFER, INPUT, Stopwatch
from mpserve.serving.tensors import Tensor, TensorModel, is_async

FEW = 16
"""Elements up to which it costs less to look at each in Python than to watch a cast for overflow."""

_READ_AS: dict[str, Kind] = {"f": "any", "i": "i", "u": "u"}
_KINDS = {
    datatype: "d" if datatype == "FP64" else _READ_AS[dtype.kind]
    for datatype, dtype in FIXED.items()
    if dtype.kind in _READ_AS
}
"""By datatype: as what its numbers are read; the shorter floats as what they are, lest a large integer be rounded twice."""

_NUMBERS_OR_LISTS = frozenset({int, float, list})

WHOLE = (np.ndarray, dict, tuple, list)
"""What an answer mostly is; to ask whether it is an iterator costs ten times as much."""


STREAMS = (Iterator, AsyncIterator)
"""What an answer in parts is."""


def tensor_stage(model: TensorModel) -> tuple[Callable[..., Any], bool]:
    """The predict stage of a tensor model (payload to arrays, ``invoke``, arrays to a response), and if it is async.

    Raises:
        ConfigurationError: a datatype that the model declares does not exist, or not here (BF16 without ml_dtypes).
    """
    for tensor in (*model.inputs, *model.outputs):
        try:
            numpy_dtype(tensor.datatype)
        except InvalidInput as error:
            raise ConfigurationError(f"model {model.name} declares {tensor.name!r}: {error}") from error

    def stage(payload: Any, headers: object, response_headers: object, watch: Stopwatch) -> Any:
        arrays = to_arrays(model, payload)
        watch.lap(INPUT)
        result = model.invoke(arrays)
        watch.lap(INFER)
        return to_answer(model, payload, result)

    async def async_stage(payload: Any, headers: object, response_headers: object, watch: Stopwatch) -> Any:
        arrays = to_arrays(model, payload)
        watch.lap(INPUT)
        result = await model.invoke(arrays)
        watch.lap(INFER)
        return to_answer(model, payload, result)

    if is_async(model):
        return async_stage, True
    return stage, False


def to_answer(model: TensorModel, payload: Any, result: Any) -> Any:
    """As ``to_response``; of an answer in parts an iterator of as many responses."""
    if isinstance(result, WHOLE):
        return to_response(model, payload, result)
    if isinstance(result, Iterator):
        return _responses(model, payload, result)
    if isinstance(result, AsyncIterator):
        return _responses_async(model, payload, result)
    return to_response(model, payload, result)


def _responses(model: TensorModel, payload: Any, results: Iterator[Any]) -> Iterator[InferResponse]:
    """A response for each result; closed along with them."""
    try:
        for result in results:
            yield to_response(model, payload, result)
    finally:
        if hasattr(results, "close"):
            results.close()


async def _responses_async(
    model: TensorModel, payload: Any, results: AsyncIterator[Any]
) -> AsyncIterator[InferResponse]:
    """As ``_responses``."""
    try:
        async for result in results:
            yield to_response(model, payload, result)
    finally:
        if hasattr(results, "aclose"):
            await results.aclose()


def to_arrays(model: TensorModel, payload: Any) -> list[Array]:
    """The arrays that ``predict`` takes, checked against the declared inputs.

    Raises:
        InvalidInput: the request does not match what is declared; the message names the input and both sides.
    """
    if isinstance(payload, InferRequest):
        return _from_request(model.inputs, payload)
    return _from_instances(model.inputs, payload)


def _from_request(declared: Sequence[Tensor], request: InferRequest) -> list[Array]:
    if not declared:
        return [given.as_numpy() for given in request.inputs]
    if len(declared) == len(request.inputs) == 1:  # most requests
        only, tensor = request.inputs[0], declared[0]
        if only.name == tensor.name and only.datatype == tensor.datatype:
            return [tensor.checked(only.as_numpy())]
    by_name = {given.name: given for given in request.inputs}
    arrays = []
    for tensor in declared:
        given = by_name.get(tensor.name)
        if given is None:
            raise _misnamed(by_name, declared)
        if given.datatype != tensor.datatype:
            raise InvalidInput(f"input {tensor.name!r}: expected datatype {tensor.datatype}, got {given.datatype}")
        arrays.append(tensor.checked(given.as_numpy()))
    if len(by_name) > len(declared):
        raise _misnamed(by_name, declared)
    return arrays


def _misnamed(given: Iterable[str], declared: Sequence[Tensor]) -> InvalidInput:
    names = [tensor.name for tensor in declared]
    unexpected = [name for name in given if name not in names]
    what = f"unexpected input {unexpected[0]!r}" if unexpected else f"missing input {min(set(names) - set(given))!r}"
    return InvalidInput(f"{what}; expected {', '.join(map(repr, names))}")


def _from_instances(declared: Sequence[Tensor], payload: Any) -> list[Array]:
    rows = payload.get("instances", payload.get("inputs")) if isinstance(payload, dict) else None
    if isinstance(rows, Numbers):
        if len(declared) < 2 and (array := _of_numbers(declared, rows.array)) is not None:
            return [array]
        rows = rows.to_list()
    elif len(declared) < 2 and (array := _of_rows(declared, rows)) is not None:
        return [array]
    if not isinstance(rows, list):
        raise InvalidInput('expected a JSON object with a list of "instances"')
    if rows and isinstance(rows[0], dict) and not _is_base64(rows[0]):
        names = [tensor.name for tensor in declared] or list(rows[0])
        if not names:
            raise InvalidInput("expected each of the instances to be an object with one entry per input, got {}")
        return [
            _column(declared, index, [_field(row, name, names) for row in rows]) for index, name in enumerate(names)
        ]
    if len(declared) > 1:
        expected = ", ".join(repr(tensor.name) for tensor in declared)
        raise InvalidInput(f"expected each of the instances to be an object with {expected}")
    return [_column(declared, 0, rows)]


def of_plain_rows(declared: Sequence[Tensor], body: bytes) -> Array | None:
    """The array of a V1 body that is plainly the rows of one input; None if it has to be read as any other."""
    if len(declared) > 1:
        return None
    if len(body) >= plain.FEW_BYTES:
        return _of_numbers(declared, partial(plain.read_instances, body))
    rows = plain.read_few_instances(body)
    floats = plain.floats(rows, body.count(plain.POINT), declared[0].datatype if declared else "FP64")
    if floats is None:
        return _of_rows(declared, rows)
    return floats if not declared or declared[0].fits(floats.shape) else None


def _of_numbers(declared: Sequence[Tensor], read: Callable[[Kind], Array | None]) -> Array | None:
    """The array of numbers that are read so; None if it takes a closer look at them to make it, or to say what is wrong."""
    if not declared:
        return read("any")
    kind = _KINDS.get(declared[0].datatype)
    array = None if kind is None else read(kind)
    if array is None or not declared[0].fits(array.shape):
        return None
    dtype = FIXED[declared[0].datatype]
    if dtype.kind in "iu":
        try:
            return narrow(array, declared[0].datatype)
        except InvalidInput:
            return None
    return _as_floats(array, dtype)


def _of_rows(declared: Sequence[Tensor], rows: Any) -> Array | None:
    """As ``_of_numbers``, of what may be a list of them."""
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
    if dtype is None or dtype.kind != "f" or kind not in "iuf" or not declared[0].fits(array.shape):
        return None
    return _as_floats(array, dtype)


def _as_floats(array: Array, dtype: np.dtype[Any]) -> Array | None:
    """Finite numbers as a float dtype; None if it cannot hold one of them."""
    if dtype.itemsize == 8 or (dtype.itemsize == 4 and (array.dtype.kind != "f" or _are_few_fp32(array))):
        return array.astype(dtype, copy=False)
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype, copy=False)
    except FloatingPointError:
        return None


def _are_few_fp32(array: Array) -> bool:
    """Whether there are few elements, and all within FP32. Not by their squares, of which numpy 2 warns if they overflow."""
    if not 0 < array.size <= FEW:
        return False
    elements = array.ravel().tolist()
    return bool(min(elements) > -FP32_END and max(elements) < FP32_END)


def _field(row: Any, name: str, names: Sequence[str]) -> Any:
    if not isinstance(row, dict) or name not in row:
        raise InvalidInput(f"expected each of the instances to be an object with {', '.join(map(repr, names))}")
    return row[name]


def _column(declared: Sequence[Tensor], index: int, values: list[Any]) -> Array:
    """All instances' values of one input as an array of its declared datatype."""
    name = repr(declared[index].name) if declared else str(index)
    decoded = [_decoded(value) for value in values] if _holds_base64(values) else values
    try:
        array = np.array(decoded)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"input {name}: expected instances of one shape, of numbers, booleans or strings") from error
    if array.dtype.kind == "f" and (not declared or declared[index].datatype == "UINT64"):
        array = _unsigned(array, decoded)
    if array.dtype.kind not in "biufUS":
        got = _kinds(array.ravel().tolist())
        raise InvalidInput(f"input {name}: expected numbers, booleans or strings, got {got}")
    if array.dtype.kind in "US":
        if declared and declared[index].datatype != "BYTES":
            raise InvalidInput(f"input {name}: expected numbers for {declared[index].datatype}, got a string")
        # numpy turns [1, "a"] into text, and its own text types cut trailing zeros off.
        array = np.array(decoded, dtype=object)
    try:
        cast_array = cast(array, declared[index].datatype if declared else datatype_of(array.dtype))
    except InvalidInput as error:
        raise InvalidInput(f"input {name}: {error}") from error
    if cast_array.dtype.kind not in "biuO" and not np.isfinite(cast_array).all():
        raise InvalidInput(f"input {name}: a value is out of range for {datatype_of(cast_array.dtype)}")
    return declared[index].checked(cast_array) if declared else cast_array


def _unsigned(array: Array, values: list[Any]) -> Array:
    """The array of these values, of integers also where some need 64 bits unsigned: numpy makes them floats."""
    if not (array >= UNSIGNED).any():
        return array
    objects = np.array(values, dtype=object)
    elements = objects.ravel().tolist()
    return objects.astype(np.uint64) if set(map(type, elements)) == {int} and min(elements) >= 0 else array


def _kinds(values: list[Any]) -> str:
    names = {type(None): "null", dict: "an object", list: "a list"}
    return " and ".join(sorted({names.get(type(value), type(value).__name__) for value in values}))


def _holds_base64(values: list[Any]) -> bool:
    return any(_is_base64(value) for value in values)


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


def to_response(model: TensorModel, payload: Any, result: Any) -> InferResponse:
    """What ``predict`` returned, named and checked against the declared outputs.

    Raises:
        InferenceError: as ``to_outputs``.
    """
    request_id = payload.id if isinstance(payload, InferRequest) else None
    return InferResponse(request_id, model.name, to_outputs(model, result))


def to_outputs(model: TensorModel, result: Any) -> list[InferOutput]:
    """As ``to_response``, the outputs alone.

    Raises:
        InferenceError: the model returned something else than it declares, or arrays of a type that V2 does not have;
            the message names the output and both sides.
    """
    declared = model.outputs
    if type(result) is np.ndarray and len(declared) == 1:  # most answers
        array = _as_declared(declared[0], result)
        return [InferOutput(declared[0].name, array.shape, declared[0].datatype, array)]
    outputs = []
    for name, array in _named(declared, result):
        try:
            outputs.append(InferOutput(name, list(array.shape), datatype_of(array.dtype), array))
        except InvalidInput as error:  # not the client's fault
            raise InferenceError(f"output {name!r}: {error}") from error
    return outputs


def _named(declared: Sequence[Tensor], result: Any) -> list[tuple[str, Array]]:
    if not declared:
        if isinstance(result, dict):
            return [(str(name), to_numpy(value)) for name, value in result.items()]
        values = result if isinstance(result, tuple) else (result,)
        return [(f"output-{index}", to_numpy(value)) for index, value in enumerate(values)]
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
    if type(value) is np.ndarray and value.dtype is FIXED.get(tensor.datatype) and tensor.fits(value.shape):
        return value
    try:
        array = cast(to_numpy(value), tensor.datatype)
    except InvalidInput as error:
        raise InferenceError(f"output {tensor.name!r} is declared {tensor.datatype}: {error}") from error
    if not tensor.fits(array.shape):
        raise InferenceError(
            f"output {tensor.name!r} is declared with shape {list(tensor.shape)}, the model gave {list(array.shape)}"
        )
    return array


def to_numpy(value: Any) -> Array:
    """A numpy array of anything array-like: numpy, torch tensors on any device, pandas, nested lists."""
    if type(value) is np.ndarray:
        return value
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        try:
            return np.asarray(value.numpy())
        except TypeError:  # bfloat16 has no numpy counterpart
            return np.asarray(value.float().numpy())
    return np.asarray(value)
