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
from mpserve.protocol.messages import InferRequest
from mpserve.serving.conversion import to_arrays, to_response
from mpserve.serving.dataplane import InParts, is_stream
from mpserve.serving.delivery import NOTHING
from mpserve.serving.executor import as_failure
from mpserve.serving.stream import blamed
from mpserve.serving.tally import INFER, INPUT, OUTPUT
from mpserve.serving.tensors import TensorModel
from mpserve.serving.visit import Visit

Document = dict[str, Any]
Write = Callable[[TensorModel, Document, Any, NonFinite], bytes]


def infer(visit: Visit, model: TensorModel, document: Document, nonfinite: NonFinite) -> bytes | None:
    """The JSON of the answer to a V2 request object, in the model's thread; None if it is one for the ordinary way.

    Raises:
        MPServeError: as ``Dataplane.run``.
        InParts: the answer is one in parts.
    """
    arrays = _arrays(model, document) if v2.is_plain(document) else None
    return None if arrays is None else _answer(visit, model, document, arrays, _written_v2, nonfinite)


def predict(visit: Visit, model: TensorModel, document: Document, nonfinite: NonFinite) -> bytes:
    """As ``infer``, for V1."""
    model_in_log.set(visit.served.label)
    return _answer(visit, model, document, to_arrays(model, document), _written_v1, nonfinite)


def _answer(
    visit: Visit, model: TensorModel, document: Document, arrays: list[Array], write: Write, nonfinite: NonFinite
) -> bytes:
    served, watch = visit.served, visit.watch
    model_in_log.set(served.label)
    visit.carries_array(arrays[0])
    watch.lap(INPUT)
    begun = watch.now
    try:
        result = model.invoke(arrays)
        watch.lap(INFER)
        json = write(model, document, result, nonfinite)
    except (MPServeError, InParts):
        raise
    except BaseException as error:
        raise blamed(as_failure(error), model.name, "predict") from error
    finally:
        watch.lap(OUTPUT)
        served.pipeline.observe_predict(watch.now - begun)
    visit.is_answered = True
    return json


def _arrays(model: TensorModel, document: dict[str, Any]) -> list[Array] | None:
    """The arrays that the model declares, in their order, if they came in it and in a plain way."""
    declared, entries = model.inputs, document.get("inputs")
    if type(entries) is not list or len(entries) != len(declared) or not declared:
        return None
    arrays = []
    for tensor, entry in zip(declared, entries, strict=True):
        if type(entry) is not dict or len(entry) != 4 or entry.get("name") != tensor.name:
            return None
        if entry.get("datatype") != tensor.datatype:
            return None
        array = plain.array(entry.get("data"), tensor.datatype, entry.get("shape"))
        if array is None or not tensor.fits(array.shape):
            return None
        arrays.append(array)
    return arrays


def _is_as_declared(model: TensorModel, result: Any) -> bool:
    """Whether it is one array that is just what the model declares."""
    declared = model.outputs
    return len(declared) == 1 and plain.is_writable(result, declared[0].datatype) and declared[0].fits(result.shape)


def _written_v2(model: TensorModel, document: Document, result: Any, nonfinite: NonFinite) -> bytes:
    if _is_as_declared(model, result):
        name, datatype, _ = model.outputs[0]
        entries = [plain.entry(name, datatype, result)]
        json = v2.write_plain(model.name, None, document.get("id"), entries, nonfinite)
        if json is not None:
            return json
    request = InferRequest(model.name, plain.read_inputs(document) or [], document.get("id"))
    if is_stream(result):
        raise InParts(request, result, {}, NOTHING)
    return v2.encode_response(to_response(model, request, result), nonfinite)


def _written_v1(model: TensorModel, document: Document, result: Any, nonfinite: NonFinite) -> bytes:
    if is_stream(result):
        raise InParts(document, result, {}, NOTHING)
    if _is_as_declared(model, result) and (nonfinite == "null" or np.isfinite(result).all()):
        json, _ = v1.encode_response({"predictions": result}, "null")
    else:
        json, _ = v1.encode_response(to_response(model, document, result), nonfinite)
    return json
