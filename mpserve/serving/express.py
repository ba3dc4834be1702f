"""Arrays in, arrays out: a plain request to a tensor model, without the messages in between.

The messages and tensors that a small request is made into, and checked in, are half of what it costs. Here it goes from JSON to
the arrays that the model takes, and back. What is not plainly so is left to the ordinary way before the model has seen it, to be
refused there if it must be. It knows no front end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import itemgetter
from time import perf_counter_ns
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput, MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol import v1, v2
from mpserve.protocol.beginnings import read_request
from mpserve.protocol.datatypes import FIXED, Array, NonFinite, plain_datatype
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.protocol.plain import Read, Request
from mpserve.serving.batch import Parts
from mpserve.serving.conversion import of_plain_rows, to_answer, to_arrays
from mpserve.serving.dataplane import InParts, is_stream
from mpserve.serving.delivery import NOTHING
from mpserve.serving.executor import as_failure
from mpserve.serving.pipeline import NANO
from mpserve.serving.stream import blamed
from mpserve.serving.tally import INFER, INPUT, OUTPUT
from mpserve.serving.tensors import Tensor, TensorModel
from mpserve.serving.visit import Visit


class Given(ABC):
    """A plain request: what it gives to the model, and how it wants its answer."""

    __slots__ = ("arrays", "model")

    model: TensorModel
    arrays: list[Array]

    @abstractmethod
    def count(self, visit: Visit) -> None:
        """Count it as so many rows as it has."""

    @abstractmethod
    def payload(self) -> Any:
        """It as what a model is given elsewhere."""

    @abstractmethod
    def write(self, outputs: Parts, nonfinite: NonFinite) -> bytes:
        """The JSON of the answer.

        Raises:
            InferenceError: there is none.
        """


_ARRAY = itemgetter(2)

Reader = Callable[[TensorModel, bytes], Given | None]
"""``read_v2`` or ``read_v1``: what is in a body, if it is plain and the model takes it as it is."""


class GivenRequest(Given):
    """One of V2, as it was read from JSON or protobuf: its rows are the first dimension of its first input."""

    __slots__ = ("request",)

    def __init__(self, model: TensorModel, arrays: list[Array], request: Any) -> None:
        self.model = model
        self.arrays = arrays
        self.request = request

    def count(self, visit: Visit) -> None:
        visit.carries_array(self.arrays[0])


class _GivenV2(GivenRequest):
    __slots__ = ()

    request: Request

    def payload(self) -> Any:
        return v2.request_of(self.request, self.model.name, None)

    def write(self, outputs: Parts, nonfinite: NonFinite) -> bytes:
        request_id, _ = self.request
        json = v2.write_plain(self.model.name, None, request_id, outputs, nonfinite)
        return json or v2.encode_response(_response(request_id, self.model, outputs), nonfinite)


class _GivenV1(Given):
    __slots__ = ()

    def __init__(self, model: TensorModel, arrays: list[Array]) -> None:
        self.model = model
        self.arrays = arrays

    def count(self, visit: Visit) -> None:
        visit.is_read = True
        visit.rows = len(self.arrays[0])

    def payload(self) -> Any:
        return {}  # an answer has nothing of it

    def write(self, outputs: Parts, nonfinite: NonFinite) -> bytes:
        json = v1.write_plain(outputs[0][2], outputs[0][1], nonfinite) if len(outputs) == 1 else None
        return json or v1.encode_response(_response(None, self.model, outputs), nonfinite)[0]


def read_v2(model: TensorModel, body: bytes) -> Given | None:
    """What is in a body of nothing but JSON."""
    request = read_request(body)
    arrays = None if request is None else arrays_for(model.inputs, request[1])
    return None if request is None or arrays is None else _GivenV2(model, arrays, request)


def read_v1(model: TensorModel, body: bytes) -> Given | None:
    """As ``read_v2``."""
    array = of_plain_rows(model.inputs, body)
    if array is not None:
        return _GivenV1(model, [array])
    try:
        return _GivenV1(model, to_arrays(model, v1.read_document(body, numbers=True)))
    except InvalidInput:
        return None


def answer(visit: Visit, given: Given, nonfinite: NonFinite) -> bytes:
    """The JSON of the answer, in the model's thread.

    Raises:
        MPServeError: as ``Dataplane.run``.
        InParts: the answer is one in parts.
    """
    begun = now = _begin(visit, given)
    try:
        result = given.model.invoke(given.arrays)
        now = perf_counter_ns()
        return _written(visit, given, result, nonfinite)
    except (MPServeError, InParts):
        raise
    except BaseException as error:
        raise blamed(as_failure(error), given.model.name, "predict") from error
    finally:
        _end(visit, begun, now)


async def answer_async(visit: Visit, given: Given, nonfinite: NonFinite) -> bytes:
    """As ``answer``, of a model whose predict is ``async def``, on the event loop."""
    begun = now = _begin(visit, given)
    try:
        result = await given.model.invoke(given.arrays)
        now = perf_counter_ns()
        return _written(visit, given, result, nonfinite)
    except MPServeError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit would end the loop
        raise blamed(as_failure(error), given.model.name, "predict") from error
    finally:
        _end(visit, begun, now)


def _begin(visit: Visit, given: Given) -> int:
    """The moment at which the model is asked."""
    model_in_log.set(visit.served.label)
    given.count(visit)
    now = perf_counter_ns()
    visit.spent[INPUT] += now - visit.now
    return now


def _end(visit: Visit, asked: int, answered: int) -> None:
    """The answer is written or there is none; the model was asked and has answered at these moments, the same if it has not."""
    visit.now = now = perf_counter_ns()
    spent = visit.spent
    if answered == asked:
        answered = now
    spent[INFER] += answered - asked
    spent[OUTPUT] += now - answered
    visit.served.pipeline.observe_predict((now - asked) * NANO)


def _written(visit: Visit, given: Given, result: Any, nonfinite: NonFinite) -> bytes:
    outputs = _as_declared(given.model.outputs, result)
    converted = () if outputs else _converted(given, result)
    visit.is_answered = True  # as in the ordinary way, also if it cannot be written
    return given.write(outputs or [(made.name, made.datatype, made.as_numpy()) for made in converted], nonfinite)


def arrays_for(declared: Sequence[Tensor], inputs: list[Read]) -> list[Array] | None:
    """The arrays that a model takes, if the inputs are those that it declares, and in their order."""
    if not declared:
        return list(map(_ARRAY, inputs))
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
        datatype = plain_datatype(result.dtype)
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
        datatype = plain_datatype(array.dtype) if type(array) is np.ndarray else None
        if datatype is None or type(name) is not str:
            return None
        parts.append((name, datatype, array))
    for tensor, (name, datatype, array) in zip(declared, parts, strict=False):
        if name != tensor.name or datatype != tensor.datatype or not tensor.fits(array.shape):
            return None
    return parts


def _converted(given: Given, result: Any) -> Sequence[InferOutput]:
    """The outputs, as in the ordinary way."""
    payload = given.payload()
    response = to_answer(given.model, payload, result)
    if is_stream(response):
        raise InParts(payload, response, {}, NOTHING)
    outputs: Sequence[InferOutput] = response.outputs
    return outputs


def _response(request_id: str | None, model: TensorModel, outputs: Parts) -> InferResponse:
    tensors = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in outputs]
    return InferResponse(request_id, model.name, tensors)
