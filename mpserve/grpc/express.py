"""A plain ModelInferRequest to a tensor model, which goes from its bytes to arrays and back without messages in between.

What is plain is for ``protobuf.plain`` to say, and how such a request is answered for ``serving.express``. Any other one is
left to the ordinary way.
"""

from mpserve.errors import MPServeError
from mpserve.protocol.datatypes import NonFinite
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse
from mpserve.protocol.protobuf.fields import encode_response
from mpserve.protocol.protobuf.plain import Request, read_request, write_response
from mpserve.serving.batch import Parts
from mpserve.serving.core import ServerCore
from mpserve.serving.express import Form, Given, arrays_for
from mpserve.serving.served import Served
from mpserve.serving.tensors import TensorModel
from mpserve.serving.visit import Visit


def _request_of(request: Request, model: TensorModel) -> InferRequest:
    name, request_id, given, _, _ = request
    inputs = [InferInput(name, array.shape, datatype, array) for name, datatype, array in given]
    return InferRequest(name, inputs, request_id, from_grpc=True)


def _write(request: Request, model: TensorModel, outputs: Parts, nonfinite: NonFinite) -> bytes:
    """The ModelInferResponse: unlike JSON it holds any number."""
    _, request_id, _, _, typed = request
    message = write_response(model.name, request_id, outputs, typed)
    if message is None:
        tensors = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in outputs]
        message = b"".join(encode_response(InferResponse(request_id, model.name, tensors), typed))
    return message


PROTOBUF = Form(Visit.carries_array, _request_of, _write)


def read(core: ServerCore, data: bytes) -> tuple[Served, Given[bytes]] | None:
    """Whom a serialised ModelInferRequest asks and what it gives, if it is plain and the model takes it as it is."""
    request = read_request(data)
    if request is None:
        return None
    name, _, inputs, outputs, _ = request
    try:
        served = core.find(name)
    except MPServeError:  # which is for the request to be told
        return None
    model = served.express
    if model is None or (outputs and outputs != [tensor.name for tensor in model.outputs]):
        return None
    arrays = arrays_for(model.inputs, inputs)
    return None if arrays is None else (served, (PROTOBUF, model, arrays, request))
