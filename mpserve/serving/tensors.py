"""Models that speak arrays: ``TensorModel`` declares its inputs and outputs once, and works under V1 and V2 alike.

This is where a V1 payload (``instances``) or a V2 request becomes arrays, and arrays become an ``InferResponse`` again.
Arrays of other frameworks are recognised by what they can do (``detach``, ``cpu``, ``numpy``), not by importing the
framework.
"""

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import Any, NamedTuple

import numpy as np

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput, NotSupported
from mpserve.protocol.datatypes import Array, cast, datatype_of, numpy_dtype
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.serving.model import Model, Spec
from mpserve.serving.tally import INFER, INPUT, Stopwatch

WHOLE = (np.ndarray, dict, tuple, list)
"""What an answer mostly is; to ask whether it is an iterator costs ten times as much."""


STREAMS = (Iterator, AsyncIterator)
"""What an answer in parts is."""


class Tensor(NamedTuple):
    """A declared input or output: V2 name, datatype and shape; -1 stands for any size."""

    name: str
    datatype: str
    shape: Sequence[int]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` is one that this declaration allows."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def describe(self) -> Spec:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


class TensorModel(Model):
    """A model whose ``predict`` takes and returns arrays.

    ``predict`` gets one numpy array per declared input, in their order, and returns one per declared output: an array,
    a tuple of them, or a dict by name (torch tensors do as well). Without ``inputs`` it gets whatever the request
    holds; without ``outputs`` the answers are named ``output-0``, ``output-1``, as the SDK names them.

    V1: ``instances`` is the one input's rows, or a list of objects with one entry per input; ``predictions`` mirrors
    that.

    Attributes:
        inputs, outputs: what is declared.
        max_batch_size: rows that ``predict`` is given at most, of several requests together; 0 gives it each request by
            itself, None leaves it to ``--max_batch_size``. Batches need -1 as the first dimension of every tensor.
        max_batch_delay: seconds for which an idle model waits for a fuller batch; None leaves it to ``--max_batch_delay``.
        preferred_batch_sizes: rows of a batch that is not held back for more, and not filled beyond if more are there.
        pad_value: fills requests of different shape up to the largest of their batch; None joins only those of one shape.
    """

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    max_batch_size: int | None = None
    max_batch_delay: float | None = None
    preferred_batch_sizes: Sequence[int] = ()
    pad_value: float | None = None

    def predict(self, *arrays: Any) -> Any:
        """Answer for the given arrays; the first dimension is the batch."""
        raise NotSupported(f"Model {self.name} does not implement predict.")

    def invoke(self, arrays: Sequence[Array]) -> Any:
        """How ``predict`` is called. A framework's base class moves the arrays to its device here."""
        return self.predict(*arrays)

    def warmup(self) -> Any:
        """Predict once on ``sample``, if there is one: one array, or a sequence with one per input, as declared."""
        if self.sample is None:
            return None
        given = [self.sample] if len(self.inputs) == 1 or isinstance(self.sample, np.ndarray) else self.sample
        arrays = [np.asarray(array) for array in given]
        if self.inputs:
            arrays = [_checked(tensor, cast(a, tensor.datatype)) for tensor, a in zip(self.inputs, arrays, strict=True)]
        return self.invoke(arrays)

    def get_input_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.inputs]

    def get_output_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.outputs]


class FunctionModel(TensorModel):
    """A pair of functions: ``load()`` gives an object, ``predict(object, array, ...)`` answers; or ``predict`` alone.

    A ``load`` with a parameter ``device``, or any other that must be given, gets the device and runs in each worker.
    One that needs nothing runs once in the master, so that what it returns is shared by all workers, unless it reaches
    for CUDA on the way.

    Raises:
        ConfigurationError: ``load`` is ``async def``; only ``predict`` may be.
    """

    def __init__(self, name: str, predict: Callable[..., Any], load: Callable[..., Any] | None) -> None:
        super().__init__(name)
        if iscoroutinefunction(load):
            raise ConfigurationError(f"model {name}: the function load is async def, expected a plain def")
        self._function = predict
        self._loader = load
        self._object: Any = None
        if iscoroutinefunction(predict):
            self.invoke = self._invoke_async  # type: ignore[method-assign]

    def preload(self) -> None:
        if self._loader is not None and not _takes_device(self._loader):
            self._object = self._loader()

    def load(self) -> None:
        if self._loader is not None and _takes_device(self._loader):
            by_name = "device" in signature(self._loader).parameters
            self._object = self._loader(device=self.device) if by_name else self._loader(self.device)

    def invoke(self, arrays: Sequence[Array]) -> Any:
        return self._function(*self._arguments(arrays))

    async def _invoke_async(self, arrays: Sequence[Array]) -> Any:
        return await self._function(*self._arguments(arrays))

    def _arguments(self, arrays: Sequence[Array]) -> Sequence[Any]:
        return arrays if self._loader is None else (self._object, *arrays)


def _takes_device(load: Callable[..., Any]) -> bool:
    parameters = signature(load).parameters
    return "device" in parameters or any(
        parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters.values()
    )


def answers_in_parts(model: TensorModel) -> bool:
    """Whether its predict is a generator, as far as can be known before it is called."""
    predict = model._function if isinstance(model, FunctionModel) else model.predict
    return isgeneratorfunction(predict) or isasyncgenfunction(predict)


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

    def answered(payload: Any, result: Any) -> Any:
        if isinstance(result, WHOLE):
            return to_response(model, payload, result)
        if isinstance(result, Iterator):
            return _responses(model, payload, result)
        if isinstance(result, AsyncIterator):
            return _responses_async(model, payload, result)
        return to_response(model, payload, result)

    def stage(payload: Any, headers: object, response_headers: object, watch: Stopwatch) -> Any:
        arrays = to_arrays(model, payload)
        watch.lap(INPUT)
        result = model.invoke(arrays)
        watch.lap(INFER)
        return answered(payload, result)

    async def async_stage(payload: Any, headers: object, response_headers: object, watch: Stopwatch) -> Any:
        arrays = to_arrays(model, payload)
        watch.lap(INPUT)
        result = await model.invoke(arrays)
        watch.lap(INFER)
        return answered(payload, result)

    if iscoroutinefunction(model.invoke) or iscoroutinefunction(model.predict):
        return async_stage, True
    return stage, False


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
    by_name = {given.name: given for given in request.inputs}
    arrays = []
    for tensor in declared:
        given = by_name.get(tensor.name)
        if given is None:
            raise _misnamed(by_name, declared)
        if given.datatype != tensor.datatype:
            raise InvalidInput(f"input {tensor.name!r}: expected datatype {tensor.datatype}, got {given.datatype}")
        arrays.append(_checked(tensor, given.as_numpy()))
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
    return _checked(declared[index], cast_array) if declared else cast_array


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


def _checked(tensor: Tensor, array: Array) -> Array:
    if not tensor.fits(array.shape):
        raise InvalidInput(f"input {tensor.name!r}: expected shape {list(tensor.shape)}, got {list(array.shape)}")
    return array


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
    outputs = []
    for name, array in _named(model.outputs, result):
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
