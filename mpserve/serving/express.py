"""Arrays in, arrays out: a plain request to a synchronous tensor model, without the messages in between.

The messages and tensors that a small request is made into, and checked in, are half of what it costs in the model's thread.
Here it goes from JSON to the arrays that the model declares, and back. Whatever is not plainly as declared goes the ordinary
way before the model has seen it, to be refused there if it must be.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mpserve.errors import MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol import plain, v1, v2
from mpserve.protocol.datatypes import Array, NonFinite
from mpserve.protocol.plain import Request
from mpserve.serving.conversion import to_answer, to_arrays
from mpserve.serving.dataplane import InParts, is_stream
from mpserve.serving.delivery import NOTHING
from mpserve.serving.executor import as_failure
from mpserve.serving.stream import blamed
from mpserve.serving.tally import INFER, INPUT, OUTPUT
from mpserve.serving.tensors import TensorModel
from mpserve.serving.visit import Visit

Write = Callable[[Visit, TensorModel, Any, Any, NonFinite], bytes]


def infer(visit: Visit, model: TensorModel, request: Request, nonfinite: NonFinite) -> bytes | None:
    """The JSON of the answer to a V2 request, in the model's thread; None if it is one for the ordinary way.

    Raises:
        MPServeError: as ``Dataplane.run``.
        InParts: the answer is one in parts.
    """
    arrays = arrays_of(model, request)
    if arrays is None:
        return None
    visit.carries_array(arrays[0])
    return _answer(visit, model, request, arrays, _written_v2, nonfinite)


def predict(visit: Visit, model: TensorModel, document: dict[str, Any], nonfinite: NonFinite) -> bytes:
    """As ``infer``, for V1."""
    visit.carries(document)
    return _answer(visit, model, document, None, _written_v1, nonfinite)


def _answer(
    visit: Visit, model: TensorModel, request: Any, arrays: list[Array] | None, write: Write, nonfinite: NonFinite
) -> bytes:
    """``arrays`` is None where they are still to be made of the request."""
    served, watch = visit.served, visit.watch
    model_in_log.set(served.label)
    watch.lap(INPUT)
    begun = watch.now
    try:
        if arrays is None:
            arrays = to_arrays(model, request)
            watch.lap(INPUT)
        result = model.invoke(arrays)
        watch.lap(INFER)
        json = write(visit, model, request, result, nonfinite)
    except (MPServeError, InParts):
        raise
    except BaseException as error:
        raise blamed(as_failure(error), model.name, "predict") from error
    finally:
        watch.lap(OUTPUT)
        served.pipeline.observe_predict(watch.now - begun)
    visit.is_answered = True
    return json


def arrays_of(model: TensorModel, request: Request) -> list[Array] | None:
    """The arrays that the model declares, in their order, if they came in it."""
    declared = model.inputs
    if len(request.inputs) != len(declared):
        return None
    arrays = []
    for tensor, (name, datatype, array) in zip(declared, request.inputs, strict=True):
        if name != tensor.name or datatype != tensor.datatype or not tensor.fits(array.shape):
            return None
        arrays.append(array)
    return arrays


def _is_as_declared(model: TensorModel, result: Any) -> bool:
    """Whether it is one array that is just what the model declares."""
    declared = model.outputs
    return len(declared) == 1 and plain.is_writable(result, declared[0].datatype) and declared[0].fits(result.shape)


def _written_v2(visit: Visit, model: TensorModel, request: Request, result: Any, nonfinite: NonFinite) -> bytes:
    if _is_as_declared(model, result):
        name, datatype, _ = model.outputs[0]
        json = v2.write_plain(model.name, None, request.id, [plain.entry(name, datatype, result)], nonfinite)
        if json is not None:
            return json
    message = v2.request_of(request, model.name, None)
    return v2.encode_response(_response(visit, model, message, result), nonfinite)


def _written_v1(visit: Visit, model: TensorModel, document: dict[str, Any], result: Any, nonfinite: NonFinite) -> bytes:
    if _is_as_declared(model, result) and (nonfinite == "null" or np.isfinite(result).all()):
        json, _ = v1.encode_response({"predictions": result}, "null")
    else:
        json, _ = v1.encode_response(_response(visit, model, document, result), nonfinite)
    return json


def _response(visit: Visit, model: TensorModel, payload: Any, result: Any) -> Any:
    answer = to_answer(model, payload, result)
    if is_stream(answer):
        raise InParts(payload, answer, {}, NOTHING)
    visit.is_answered = True  # as in the ordinary way, also if it cannot be written
    return answer
