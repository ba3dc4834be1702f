"""The codecs of V1: JSON or raw bytes, and CloudEvents around them. Of HTTP it knows a request's headers, as words."""

from collections.abc import Mapping, Sequence
from typing import Any

from mpserve.errors import NotSupported
from mpserve.protocol import cloudevents
from mpserve.protocol.codec import JSON, Codec, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.datatypes import NonFinite
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.json.limits import JsonLimits
from mpserve.protocol.json.numbers import Numbers
from mpserve.protocol.v1 import body as v1
from mpserve.protocol.v1 import rows as v1_rows


class V1Codec(Codec):
    """Requests whose content type says JSON, or any other, and their answers.

    Args:
        nonfinite: what becomes of NaN and infinity in an answer.
        content_type: of the request; a body that is no JSON by it is handed to the model as it is.
    """

    parts = Parts.MANY

    def __init__(self, nonfinite: NonFinite, content_type: str | None = None) -> None:
        self.nonfinite = nonfinite
        self.content_type = content_type
        self.is_json = v1.is_json(content_type)

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        if speaks_arrays and self.is_json:
            tensors = v1_rows.read_plain(declared, body)
            if tensors is not None:
                return Inputs(tensors, rows=len(tensors[0][2]))
        return document_inputs(v1.decode_request(body, self.content_type, numbers=speaks_arrays))

    def json_in(self, body: bytes) -> bytes:
        return body if self.is_json or v1.is_json_text(body, self.content_type) else b""

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        if outputs.tensors is None:
            return Encoded(*v1.encode_response(outputs.result, self.nonfinite))
        body = v1.write_plain(outputs.tensors, self.nonfinite)
        return Encoded(body, JSON) if body else Encoded(*v1.encode_response(outputs.response(inputs), self.nonfinite))

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        return v1.encode_part(outputs.result)

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(f"Model {model_name} answers in parts.")


class CloudEventCodec(Codec):
    """A V1 request in a CloudEvent, and the event that answers it.

    Args:
        headers: of the request, which hold the attributes of an event in binary mode.
        answer: the codec of the answer within the event.
        limits: of JSON within the event.
        source, event_type, merge: as ``cloudevents.wrap``.
    """

    def __init__(
        self,
        headers: Mapping[str, str],
        answer: V1Codec,
        limits: JsonLimits,
        source: str | None,
        event_type: str | None,
        merge: bool,
    ) -> None:
        self.is_json = cloudevents.is_json(headers)
        self.limits = limits
        self.headers = headers
        self.answer = answer
        self.source = source
        self.event_type = event_type
        self.merge = merge

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        event = cloudevents.unwrap(self.headers, body, self.limits)
        inputs = document_inputs(event.data)
        inputs.state = event
        return inputs

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        plain = self.answer.write(inputs, outputs)
        fields, wrapped = cloudevents.wrap(
            inputs.state, plain.body, plain.content_type, outputs.model_name,
            source=self.source, event_type=self.event_type, merge=self.merge,
        )  # fmt: skip
        return Encoded(wrapped, None, fields)

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(f"Model {model_name} answers in parts, which is not offered for a CloudEvent")


def document_inputs(document: Any) -> Inputs:
    """The inputs in a V1 document, whose instances may be ``Numbers``, or in a body that is no JSON."""
    instances = document.get("instances", document.get("inputs")) if isinstance(document, dict) else None
    if isinstance(instances, Numbers):
        return Inputs(payload=document, rows=(instances.shape or [1])[0])
    return Inputs(payload=document, rows=len(instances) if isinstance(instances, list) else 1)
