"""The codec of V2 over REST: JSON, and JSON with the bytes of tensors behind it.

Source: Open Inference Protocol (inference_rest.md); Triton's docs/protocol/extension_binary_data.md.
"""

import re
from collections.abc import Sequence

from mpserve.errors import NotSupported
from mpserve.protocol import beginnings, plain_binary, v1, v2
from mpserve.protocol.binary import HEADER
from mpserve.protocol.codec import JSON, NO_FIELDS, Encoded, Inputs, Outputs, Parts
from mpserve.protocol.datatypes import NonFinite
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.messages import InferResponse
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.wire import Encoded as Message

OCTETS = "application/octet-stream"
LENGTH = re.compile("[0-9]{1,18}")
"""The header where it is plain; whatever else it holds is refused in words."""


class V2Codec:
    """V2 requests over REST, and their answers.

    Args:
        nonfinite: what becomes of NaN and infinity in JSON.
        json_length: the header Inference-Header-Content-Length; None: the body is nothing but JSON.
    """

    parts = Parts.REFUSED
    part_fields = NO_FIELDS

    def __init__(self, nonfinite: NonFinite, json_length: str | None = None) -> None:
        self.nonfinite = nonfinite
        self.json_length = json_length
        self._length = int(json_length) if json_length and LENGTH.fullmatch(json_length) else 0

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        if self.json_length is None:
            return beginnings.read(body)
        plain = plain_binary.read(body, self._length) if self._length and speaks_arrays else None
        return plain or Inputs.of(v2.decode_request(body, "", None, self.json_length, declared))

    def write(self, inputs: Inputs, outputs: Outputs) -> Encoded:
        _, _, version, tensors, result = outputs
        if tensors is not None:
            binary = self._binary(inputs, tensors) if inputs.parameters or inputs.requested else 0
            if not binary:
                body = v2.write_plain(outputs.model_name, version, inputs.id, tensors, self.nonfinite)
                if body is not None:
                    return Encoded(body, JSON)
            elif binary == len(tensors):
                message = plain_binary.write_response(outputs.model_name, version, inputs.id, tensors)
                if message is not None:
                    return _with_bytes(message)
            result = outputs.response(inputs)
        if not isinstance(result, InferResponse):  # a model of the SDK may return the response object as a dict
            return Encoded(*v1.encode_response(result, self.nonfinite))
        request = inputs.given_to(outputs.model_name, outputs.model_version)
        return _with_bytes(v2.encode_answer(result, request, self.nonfinite))

    def write_part(self, inputs: Inputs, outputs: Outputs) -> bytes:
        raise self.refusal(outputs.model_name)

    def last_part(self, fault: bytes) -> bytes | None:
        return None

    def refusal(self, model_name: str) -> NotSupported:
        return NotSupported(
            f"Model {model_name} answers in parts, which /infer does not carry: ask for /generate_stream, or call"
            " ModelStreamInfer over gRPC"
        )

    def _binary(self, inputs: Inputs, tensors: list[NamedArray]) -> int:
        """How many of the outputs are wanted as bytes."""
        as_a_whole = bool(inputs.parameters and inputs.parameters.get(plain_binary.WANTED))
        if not inputs.requested:
            return len(tensors) if as_a_whole else 0
        number = 0
        for output in inputs.requested:  # which are the outputs that are there, in their order
            said = None if output.parameters is None else output.parameters.get("binary_data")
            number += as_a_whole if said is None else said
        return number


def _with_bytes(message: Message) -> Encoded:
    """The message in one piece of its own: a model may use its arrays again in its next predict."""
    if message.json_length is None:
        return Encoded(message.join(), JSON)
    return Encoded(message.join(), None, {"content-type": OCTETS, HEADER.lower(): str(message.json_length)})
