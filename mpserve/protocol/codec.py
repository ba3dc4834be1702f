"""One ``Codec`` per format: bytes to ``Inputs``, ``Outputs`` to ``Encoded``. The seam between a format and everything else.

A codec has the rules of one format: it does no I/O, and knows neither models nor queues. A codec has a fast reader and writer
for the usual case, which give None for any other case. The strict reader and writer know every case, and name its faults.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from mpserve.errors import NotSupported
from mpserve.protocol.compression import choose, compress, worthwhile
from mpserve.protocol.content_types import decoded
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.tensors import NamedArray, Parameters
from mpserve.protocol.v1.rows import tensors_in

JSON = "application/json"
NO_FIELDS: Mapping[str, str] = {}


@dataclass(slots=True)
class Inputs:
    """The content of a request: tensors, or a message, or a V1 payload.

    Attributes:
        tensors: the inputs, if neither they nor the request have parameters; else None.
        id: the id that the client has given the request.
        requested: the outputs that the client asks for; empty: all outputs.
        parameters: the parameters of the request.
        message: a V2 request that is more than tensors.
        payload: a V1 document, or the bytes of a V1 body that is no JSON.
        rows: the number of instances of a V1 document; None: the shape of the first input decides.
        state: any value that the codec needs to write the answer.
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

    def asked(self) -> tuple[str, ...]:
        """The names of the outputs that the client asks for; empty: it leaves that to the model."""
        return tuple([wanted.name for wanted in self.requested or ()])

    def arrays(self, declared: Sequence[Tensor]) -> list[NamedArray]:
        """All inputs as tensors, for a model with these declared inputs.
        Raises InvalidInput if the data of an input does not fit its datatype, shape or content type, or there are no such inputs.
        """
        if self.tensors is not None:
            return self.tensors
        if self.message is not None:
            return decoded(self.message.inputs, self.parameters)
        return tensors_in(declared, self.payload)

    def given_to(self, model_name: str, model_version: str | None) -> Any:
        """The argument of a kserve SDK model: the V1 payload, or the V2 request as a message to this model."""
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


@dataclass(slots=True)
class Outputs:
    """The answer of a model: tensors, or any other result of a kserve SDK model.

    Attributes:
        model_name, own_version: the name and version of the model.
        model_version: the version in the answer; None if the client named no version and the model has only one.
        tensors: the outputs, if they have no parameters; else None.
        result: the result of the model, if it is more than tensors.
    """

    model_name: str
    own_version: str
    model_version: str | None
    tensors: list[NamedArray] | None
    result: Any = None

    def response(self, inputs: Inputs) -> InferResponse:
        outputs = [InferOutput(name, array.shape, datatype, array) for name, datatype, array in self.tensors or ()]
        return InferResponse(inputs.id, self.model_name, outputs, model_version=self.model_version)


@dataclass(slots=True)
class Encoded:
    """An answer in memory of its own.

    Attributes:
        body: the bytes.
        content_type: the media type, unless the model has set one; None: the model must set it.
        fields: headers that the format needs.
    """

    body: bytes
    content_type: str | None = None
    fields: Mapping[str, str] | None = None


def compressed(encoded: Encoded, accept_encoding: str) -> Encoded:
    """The answer in the content coding that ``accept_encoding`` asks for; unchanged if that saves nothing."""
    coding = choose(accept_encoding)
    if coding is None or not worthwhile([encoded.body]):
        return encoded
    fields = {**(encoded.fields or {}), "content-encoding": coding, "vary": "accept-encoding"}
    return Encoded(compress(coding, [encoded.body]), encoded.content_type, fields)


class Parts(Enum):
    """How a format carries an answer in parts: not at all, if it has exactly one part, or each part separately."""

    REFUSED = "refused"
    ONE = "one"
    MANY = "many"


class Codec(Protocol):
    """The rules of one format. ``part_fields``: the headers that an answer in parts must have. ``is_json``: whether every body is
    JSON as a whole.
    """

    is_json: bool = True
    parts: Parts = Parts.REFUSED
    part_fields: Mapping[str, str] = NO_FIELDS

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        """The inputs in a body, for a model with these declared inputs; ``speaks_arrays``: the model takes arrays only.
        Raises InvalidInput: the format does not allow the body; the message says where, what was got and what was expected;
        NotSupported: the format allows the body, and this server does not know it.
        """

    def json_in(self, body: bytes) -> bytes:
        """The part of a body that is read as JSON."""
        return body if self.is_json else b""

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        """The answer to these inputs. Raises InferenceError if the format cannot carry the outputs."""

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        """One part of an answer in parts. Raises as ``write``."""
        raise self.refusal(outputs.model_name)

    def last_part(self, fault: bytes) -> bytes | None:
        """The last part of an answer that failed after its first part; ``fault`` is a JSON object. None: cut the answer off."""
        return None

    def refusal(self, model_name: str) -> NotSupported:
        """The refusal of an answer in parts."""
