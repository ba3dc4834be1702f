"""One ``Codec`` per format: bytes to ``Inputs``, ``Outputs`` to ``Encoded``. The seam between a format and all the rest.

A codec has the rules of one format and nothing else: it does no I/O, and knows neither models nor queues. A fast reader or
writer for the usual case is inside the codec. It gives None where the case is not the usual one, and the strict reader or
writer, which knows every case and says what is wrong, takes over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from mpserve.errors import NotSupported
from mpserve.protocol.compression import choose, compress, worthwhile
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.tensors import NamedArray, Parameters
from mpserve.protocol.v1.rows import tensors_in

JSON = "application/json"
NO_FIELDS: Mapping[str, str] = {}


@dataclass(slots=True)
class Inputs:
    """What a request holds: tensors, or a message, or a V1 payload.

    Attributes:
        tensors: the inputs, where none has parameters and the request has none either; else None.
        id: of the request, if the client has given one.
        requested: the outputs that the client asks for; empty: all of them.
        parameters: of the request.
        message: a V2 request that is more than tensors.
        payload: a V1 document, or the bytes of a V1 body that is no JSON.
        rows: of a V1 document, the number of its instances; None: the shape of the first input says it.
        state: whatever the codec needs again to write the answer.
    """

    tensors: list[NamedArray] | None = None
    id: str | None = None
    requested: list[RequestedOutput] | None = None
    parameters: Parameters | None = None
    message: InferRequest | None = None
    payload: Any = None
    rows: int | None = None
    state: Any = None

    @classmethod
    def of(cls, message: InferRequest, state: Any = None) -> "Inputs":
        return cls(None, message.id, message.request_outputs, message.parameters, message, state=state)

    def arrays(self, declared: Sequence[Tensor]) -> list[NamedArray]:
        """All inputs as tensors, also those of a message or of a V1 document, to a model that declares these.
        Raises InvalidInput if the data of an input does not fit its datatype or shape, or there are no such inputs.
        """
        if self.tensors is not None:
            return self.tensors
        if self.message is not None:
            return [(given.name, given.datatype, given.as_numpy()) for given in self.message.inputs]
        return tensors_in(declared, self.payload)

    def given_to(self, model_name: str, model_version: str | None) -> Any:
        """What a model of the kserve SDK is handed: the V1 payload, or the V2 request as a message to this model."""
        if self.payload is not None:
            return self.payload
        message = self.message
        if message is None:
            inputs = []
            for name, datatype, array in self.tensors or ():
                inputs.append(InferInput(name, array.shape, datatype, array))
            message = self.message = InferRequest(
                model_name, inputs, self.id, parameters=self.parameters, request_outputs=self.requested
            )
        message.model_name, message.model_version = model_name, model_version
        return message


class Outputs(NamedTuple):
    """What a model has answered: tensors, or whatever else a model of the kserve SDK returns.

    Attributes:
        model_name, own_version: of the model.
        model_version: the version that the answer names; None where the client has named none and the model has but one.
        tensors: the outputs, where none has parameters; else None.
        result: what the model returned, where that is not just tensors.
    """

    model_name: str
    own_version: str
    model_version: str | None
    tensors: list[NamedArray] | None
    result: Any = None

    def response(self, inputs: Inputs) -> InferResponse:
        outputs = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in self.tensors or ()]
        return InferResponse(inputs.id, self.model_name, outputs, model_version=self.model_version)


class Encoded(NamedTuple):
    """An answer as it is sent, in memory of its own.

    Attributes:
        body: the bytes.
        content_type: the media type, unless the model has set another; None: the model must say it.
        fields: headers that the format must have, whatever the model has set.
    """

    body: bytes
    content_type: str | None = None
    fields: Mapping[str, str] = NO_FIELDS


def compressed(encoded: Encoded, accept_encoding: str) -> Encoded:
    """The answer in the content coding that ``accept_encoding`` asks for; unchanged if that saves nothing."""
    body, content_type, fields = encoded
    coding = choose(accept_encoding)
    if coding is None or not worthwhile([body]):
        return encoded
    fields = {**fields, "content-encoding": coding, "vary": "accept-encoding"}
    return Encoded(compress(coding, [body]), content_type, fields)


class Parts(Enum):
    """How a format carries an answer in parts: not at all, if there is exactly one, or each by itself."""

    REFUSED = "refused"
    ONE = "one"
    MANY = "many"


class Codec(Protocol):
    """The rules of one format. ``part_fields``: the headers that an answer in parts must have."""

    parts: Parts = Parts.REFUSED
    part_fields: Mapping[str, str] = NO_FIELDS

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        """What a body holds. The model declares these inputs; ``speaks_arrays``: it is given nothing but their arrays.
        Raises InvalidInput: the format does not allow the body; the message says where, what was got and what was expected;
        NotSupported: the format allows the body, and this server does not know it.
        """

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        """The answer to these inputs. Raises InferenceError if the format cannot carry the outputs."""

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        """One part of an answer in parts. Raises as ``write``."""
        raise self.refusal(outputs.model_name)

    def last_part(self, fault: bytes) -> bytes | None:
        """The last part of an answer that failed after its first; ``fault`` is a JSON object. None: the answer is cut off."""
        return None

    def refusal(self, model_name: str) -> NotSupported:
        """Why an answer in parts is refused."""
