"""Arrays in, arrays out: a plain request to a tensor model, without the messages in between.

The messages and tensors that a small request is made into, and checked in, are half of what it costs. Here it goes from JSON to
the arrays that the model takes, and back. What is not plainly so is left to the ordinary way before the model has seen it, to be
refused there if it must be. It knows no front end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from mpserve.errors import InvalidInput, MPServeError
from mpserve.protocol import plain_binary, v1, v2
from mpserve.protocol.beginnings import read_request
from mpserve.protocol.datatypes import FIXED, OF_FIXED, Array, NonFinite
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.protocol.plain import Read, Request
from mpserve.protocol.wire import Encoded
from mpserve.serving.batch import Parts
from mpserve.serving.conversion import of_plain_rows, to_answer, to_arrays
from mpserve.serving.dataplane import InParts, is_stream
from mpserve.serving.delivery import NOTHING
from mpserve.serving.executor import as_failure
from mpserve.serving.pipeline import NANO
from mpserve.serving.stream import blamed
from mpserve.serving.tensors import Tensor, TensorModel
from mpserve.serving.visit import Visit

W_co = TypeVar("W_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Form(Generic[W_co]):
    """What kind of plain request it is: how it is counted and answered.

    Attributes:
        count: counts it as so many rows as it has, which its first array tells.
        payload: makes it what a model is given elsewhere, of what was read, for this model.
        write: makes the answer, for what was read, of this model with these outputs. Raises InferenceError: there is none.
    """

    count: Callable[[Visit, Array], None]
    payload: Callable[[Any, TensorModel], Any]
    write: Callable[[Any, TensorModel, Parts, NonFinite], W_co]


Given: TypeAlias = tuple[Form[W_co], TensorModel, list[Array], Any]
"""A plain request: its form, the model, the arrays that this is given, and what else was read. A tuple, since to make an object
takes nearly as long as to read four numbers from JSON."""

Written: TypeAlias = bytes | Encoded
"""An answer: all JSON, or with tensors behind it."""

Reader: TypeAlias = Callable[[TensorModel, bytes], Given[Written] | None]
"""``read_v2`` or ``read_v1``, or ``binary_reader``: what is in a body, if it is plain and the model takes it as it is."""


def _write_v2(request: Request, model: TensorModel, outputs: Parts, nonfinite: NonFinite) -> bytes:
    request_id, _ = request
    json = v2.write_plain(model.name, None, request_id, outputs, nonfinite)
    return json or v2.encode_response(_response(request_id, model, outputs), nonfinite)


def _request_of(request: Request, model: TensorModel) -> Any:
    return v2.request_of(request, model.name, None)


V2 = Form(Visit.carries_array, _request_of, _write_v2)
"""Its rows are the first dimension of its first input."""


def _carries_instances(visit: Visit, rows: Array) -> None:
    visit.is_read = True
    visit.rows = len(rows)


def _write_v1(request: None, model: TensorModel, outputs: Parts, nonfinite: NonFinite) -> bytes:
    json = v1.write_plain(outputs, nonfinite)
    return json or v1.encode_response(_response(None, model, outputs), nonfinite)[0]


V1 = Form(_carries_instances, lambda request, model: {}, _write_v1)  # an answer has nothing of the request


def _wants_binary(request: Request, model: TensorModel) -> Any:
    message = v2.request_of(request, model.name, None)
    message.parameters = {plain_binary.WANTED: True}
    return message


def _write_binary(request: Request, model: TensorModel, outputs: Parts, nonfinite: NonFinite) -> Encoded:
    request_id, _ = request
    encoded = plain_binary.write_response(model.name, request_id, outputs)
    return encoded or v2.encode_answer(_response(request_id, model, outputs), _wants_binary(request, model))


BINARY = Form(Visit.carries_array, _wants_binary, _write_binary)
"""As ``V2``, of which the answer is to be binary too."""


def read_v2(model: TensorModel, body: bytes) -> Given[bytes] | None:
    """What is in a body of nothing but JSON."""
    request = read_request(body)
    arrays = None if request is None else arrays_for(model.inputs, request[1])
    return None if request is None or arrays is None else (V2, model, arrays, request)


def binary_reader(length: int) -> Reader:
    """What reads a body of so many bytes of JSON and tensors behind it."""

    def read(model: TensorModel, body: bytes) -> Given[Encoded] | None:
        request = plain_binary.read_request(body, length)
        arrays = None if request is None else arrays_for(model.inputs, request[1])
        return None if request is None or arrays is None else (BINARY, model, arrays, request)

    return read


def read_v1(model: TensorModel, body: bytes) -> Given[bytes] | None:
    """As ``read_v2``."""
    array = of_plain_rows(model.inputs, body)
    if array is not None:
        return V1, model, [array], None
    try:
        return V1, model, to_arrays(model, v1.read_document(body, numbers=True)), None
    except InvalidInput:
        return None


def answer(visit: Visit, given: Given[W_co], nonfinite: NonFinite) -> W_co:
    """What the answer is written as, in the model's thread and a context that names the model.

    Raises:
        MPServeError: as ``Dataplane.run``.
        InParts: the answer is one in parts.
    """
    form, model, arrays, _ = given
    form.count(visit, arrays[0])
    asked = answered = perf_counter_ns()
    try:
        result = model.invoke(arrays)
        answered = perf_counter_ns()
        return _written(visit, given, result, nonfinite)
    except (MPServeError, InParts):
        raise
    except BaseException as error:
        raise blamed(as_failure(error), model.name, "predict") from error
    finally:
        _note(visit, asked, answered)


async def answer_async(visit: Visit, given: Given[W_co], nonfinite: NonFinite) -> W_co:
    """As ``answer``, of a model whose predict is ``async def``, on the event loop."""
    form, model, arrays, _ = given
    form.count(visit, arrays[0])
    asked = answered = perf_counter_ns()
    try:
        result = await model.invoke(arrays)
        answered = perf_counter_ns()
        return _written(visit, given, result, nonfinite)
    except MPServeError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit would end the loop
        raise blamed(as_failure(error), model.name, "predict") from error
    finally:
        _note(visit, asked, answered)


def _note(visit: Visit, asked: int, answered: int) -> None:
    """The answer is written or there is none; the model was asked and has answered at these moments, the same if it has not."""
    now = perf_counter_ns()
    if answered == asked:
        answered = now
    queue, given, _, _ = visit.spent
    visit.spent = [queue, given + asked - visit.now, answered - asked, now - answered]
    visit.now = now
    visit.served.pipeline.observe_predict((now - asked) * NANO)


def _written(visit: Visit, given: Given[W_co], result: Any, nonfinite: NonFinite) -> W_co:
    form, model, _, request = given
    outputs = _as_declared(model.outputs, result)
    converted = () if outputs else _converted(given, result)
    visit.is_answered = True  # as in the ordinary way, also if it cannot be written
    if not outputs:
        outputs = [(made.name, made.datatype, made.as_numpy()) for made in converted]
    return form.write(request, model, outputs, nonfinite)


def arrays_for(declared: Sequence[Tensor], inputs: list[Read]) -> list[Array] | None:
    """The arrays that a model takes, if the inputs are those that it declares, and in their order."""
    if not declared:
        return [inputs[0][2]] if len(inputs) == 1 else [array for _, _, array in inputs]
    if len(inputs) != len(declared):
        return None
    arrays = []
    for tensor, (name, datatype, array) in zip(declared, inputs, strict=True):
        if name != tensor.name or datatype != tensor.datatype or not tensor.fits(array.shape):
            return None
        arrays.append(array)
    return arrays


def _as_declared(declared: Sequence[Tensor], result: Any) -> Parts | None:
    """The outputs, if each is an array that is just what the model declares, or the model declares none."""
    if type(result) is not np.ndarray:
        return _several(declared, result)
    if not declared:
        datatype = OF_FIXED.get(result.dtype)
        return None if datatype is None else [("output-0", datatype, result)]
    name, datatype, _ = declared[0]
    is_one = len(declared) == 1 and result.dtype is FIXED.get(datatype) and declared[0].fits(result.shape)
    return [(name, datatype, result)] if is_one else None


def _several(declared: Sequence[Tensor], result: Any) -> Parts | None:
    """As ``_as_declared``, of a dict or a tuple."""
    if type(result) is dict:
        names, arrays = list(result), list(result.values())
    elif type(result) is tuple:
        names = [tensor.name for tensor in declared] or [f"output-{index}" for index in range(len(result))]
        arrays = list(result)
    else:
        return None
    if declared and len(declared) != len(arrays):
        return None
    parts = []
    for name, array in zip(names, arrays, strict=True):
        datatype = OF_FIXED.get(array.dtype) if type(array) is np.ndarray else None
        if datatype is None or type(name) is not str:
            return None
        parts.append((name, datatype, array))
    for tensor, (name, datatype, array) in zip(declared, parts, strict=False):
        if name != tensor.name or datatype != tensor.datatype or not tensor.fits(array.shape):
            return None
    return parts


def _converted(given: Given[Any], result: Any) -> Sequence[InferOutput]:
    """The outputs, as in the ordinary way."""
    form, model, _, request = given
    payload = form.payload(request, model)
    response = to_answer(model, payload, result)
    if is_stream(response):
        raise InParts(payload, response, {}, NOTHING)
    outputs: Sequence[InferOutput] = response.outputs
    return outputs


def _response(request_id: str | None, model: TensorModel, outputs: Parts) -> InferResponse:
    tensors = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in outputs]
    return InferResponse(request_id, model.name, tensors)
