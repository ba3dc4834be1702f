"""The messages that every protocol is decoded to and encoded from, with the names and signatures of the kserve SDK.

What is sent and received is `wire`'s affair, and for gRPC's messages that of `protobuf.fields`, which is imported when it
is needed: protobuf is an extra.

Source: the kserve SDK's protocol/infer_type.py (the interface only).
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mpserve.errors import InferenceError, InvalidInput, shown
from mpserve.protocol.binary import Buffer, Rest, split
from mpserve.protocol.datatypes import decode_text, not_utf8
from mpserve.protocol.json.documents import parse_object
from mpserve.protocol.tensors import InferInput, InferOutput, Parameters, Record, RequestedOutput, leave_bytes
from mpserve.protocol.v2.wire import fill, read_request, read_response, sendable, to_rest

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["InferInput", "InferOutput", "InferRequest", "InferResponse", "Parameters", "RequestedOutput"]


class InferRequest(Record):
    """One inference request: what a V2 model's ``predict`` is handed. `request_outputs` empty means all outputs."""

    def __init__(
        self,
        model_name: str,
        infer_inputs: list[InferInput],
        request_id: str | None = None,
        raw_inputs: Sequence[Buffer] | None = None,
        from_grpc: bool = False,
        parameters: Parameters | None = None,
        request_outputs: list[RequestedOutput] | None = None,
        model_version: str | None = None,
    ) -> None:
        """`raw_inputs`: the bytes of each input that is not in shared memory, which become its data.

        `from_grpc`: the request came over gRPC.
        Raises InvalidInput: `raw_inputs` do not fit the inputs.
        """
        self.id = request_id
        self.model_name = model_name
        self.model_version = model_version
        self.inputs = infer_inputs
        self.parameters = parameters
        self.request_outputs = request_outputs or []
        self.from_grpc = from_grpc  # type: ignore[assignment, method-assign]  # the SDK's name hides the class method
        self._raw = bool(raw_inputs) if from_grpc else None
        if raw_inputs:
            fill(InferInput, [tensor for tensor in infer_inputs if not tensor.in_shared_memory], raw_inputs)
        if from_grpc:
            leave_bytes(infer_inputs)

    @property
    def use_binary_outputs(self) -> bool:
        """Whether the client wants outputs as bytes if it says nothing about an output by name.

        REST: its parameter `binary_data_output`. gRPC: its inputs came as raw bytes.
        """
        if self._raw is not None:
            return self._raw
        return bool(self.parameters and self.parameters.get("binary_data_output", False))

    def wants_binary(self, name: str) -> bool:
        """Whether the output of that name is wanted as bytes."""
        if not self.request_outputs:
            return self.use_binary_outputs
        return wants_binary(name, self.request_outputs, self.use_binary_outputs)

    def get_input_by_name(self, name: str) -> InferInput | None:
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def as_dataframe(self) -> Any:
        """The inputs as the columns of a pandas DataFrame: values of an input [n] or [n, 1], else a row per cell.

        BYTES are text. Needs pandas, which is not installed along with mpserve.
        Raises InvalidInput: inputs of different lengths, or BYTES that are not UTF-8.
        """
        columns = {}
        for tensor in self.inputs:
            array = tensor.as_numpy()
            try:
                array = decode_text(array, or_none=True) if tensor.datatype == "BYTES" else array
            except UnicodeDecodeError as error:
                raise InvalidInput(f"input '{tensor.name}' {not_utf8(error)}") from None
            rows = array.shape[0] if array.ndim else 1
            columns[tensor.name] = array.ravel() if array.size == rows else list(array)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidInput(f"a DataFrame needs inputs of one length, got {lengths}")
        return import_module("pandas").DataFrame(columns)

    @classmethod
    def from_grpc(cls, request: "Message") -> "InferRequest":
        """The request in a ModelInferRequest, of mpserve's class or of another package's.
        Raises InvalidInput: anything that the protocol does not allow; the message says where, what was got and expected;
        ModuleNotFoundError: protobuf is not installed.
        """
        return cls(**_protobuf().read_request(request.SerializeToString())[0])

    @classmethod
    def from_bytes(cls, req_bytes: bytes, json_length: int, model_name: str) -> "InferRequest":
        """The request in a REST body of which the first `json_length` bytes are JSON.
        Raises InvalidInput as ``v2.decode_request``.
        """
        json, rest = split(req_bytes, str(json_length))
        return cls(model_name, **read_request(parse_object(json), Rest(rest)))

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """The request as REST sends it: (dict, None) if it is all JSON, else (body, length of its JSON).

        An input whose data was set as binary (the default of ``set_data_from_numpy``), or came as binary, goes as binary.
        Raises InvalidInput if an input has no data, data that does not fit, or what JSON cannot carry.
        """
        return to_rest(self.head(), "inputs", [(tensor, tensor.binary_data) for tensor in self.inputs])

    def head(self) -> dict[str, Any]:
        """The fields of its JSON object but for the inputs; None where there is nothing to send.
        Raises InvalidInput: a parameter that JSON cannot carry.
        """
        outputs = [
            {"name": output.name} | ({"parameters": output.parameters} if output.parameters else {})
            for output in self.request_outputs
        ]
        return {
            "id": self.id,
            "model_name": self.model_name,
            "parameters": sendable(self.parameters, InvalidInput),
            "outputs": outputs or None,
        }

    def to_grpc(self) -> "Message":
        """The request as a ModelInferRequest: raw contents if an input was set as binary, or has no typed ones.

        Raises:
            InvalidInput: an input does not fit its declaration.
            InferenceError: a parameter that gRPC cannot carry.
            ModuleNotFoundError: protobuf is not installed.
        """
        fields = _protobuf()
        typed = not any(tensor.binary_data for tensor in self.inputs)
        message: Message = fields.pb.ModelInferRequest.FromString(b"".join(fields.encode_request(self, typed)))
        return message

    def to_dict(self) -> dict[str, Any]:
        """Id, model name, inputs and parameters as plain values."""
        inputs = [tensor.to_dict() for tensor in self.inputs]
        return {"id": self.id, "model_name": self.model_name, "inputs": inputs, "parameters": self.parameters}


class InferResponse(Record):
    """The answer to one inference request."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: list[InferOutput],
        model_version: str | None = None,
        raw_outputs: Sequence[Buffer] | None = None,
        from_grpc: bool = False,
        parameters: Parameters | None = None,
        use_binary_outputs: bool = False,
        requested_outputs: list[RequestedOutput] | None = None,
    ) -> None:
        """`raw_outputs`: the bytes of each output, which become its data.

        `use_binary_outputs` and `requested_outputs` decide in ``to_rest``; the server follows the request.
        Raises InferenceError: `raw_outputs` do not fit the outputs.
        """
        self.id = response_id
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = infer_outputs
        self.parameters = parameters
        self.requested_outputs = requested_outputs or []
        self.from_grpc = from_grpc  # type: ignore[assignment, method-assign]
        self._use_binary_outputs = use_binary_outputs
        if raw_outputs:
            fill(InferOutput, infer_outputs, raw_outputs)
        if from_grpc:
            leave_bytes(infer_outputs)

    def get_output_by_name(self, name: str) -> InferOutput | None:
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    @classmethod
    def from_grpc(cls, response: "Message") -> "InferResponse":
        """The response in a ModelInferResponse, of mpserve's class or of another package's.
        Raises InferenceError if it is not as the protocol has it; ModuleNotFoundError: protobuf is not installed.
        """
        return cls(**_protobuf().read_response(response.SerializeToString()))

    @classmethod
    def from_rest(cls, response: dict[str, Any]) -> "InferResponse":
        """The response in a decoded JSON body. Raises InferenceError: it is not one of V2; the message says where and why."""
        return cls(**read_response(response, None))

    @classmethod
    def from_bytes(cls, res_bytes: bytes, json_length: int) -> "InferResponse":
        """The response in a body of which the first `json_length` bytes are JSON.
        Raises InferenceError: it is not one of V2; the message says where and why.
        """
        try:
            json, rest = split(res_bytes, str(json_length))
            document = parse_object(json)
        except InvalidInput as error:
            raise InferenceError(f"the response is not one of V2: {error}") from None
        return cls(**read_response(document, Rest(rest)))

    def to_rest(self) -> tuple[dict[str, Any] | bytes, int | None]:
        """The response as REST sends it: (dict, None) if it is all JSON, else (body, length of its JSON).
        Raises InvalidInput if an output was requested that is not there; InferenceError if an output has no data, data that
        does not fit, or what JSON cannot carry.
        """
        names = [output.name for output in self.requested_outputs or self.outputs]
        outputs = []
        for name in names:
            output = self.get_output_by_name(name)
            if output is None:
                raise unexpected_output(name, self.model_name, [each.name for each in self.outputs])
            outputs.append((output, wants_binary(name, self.requested_outputs, self._use_binary_outputs)))
        return to_rest(self.head(), "outputs", outputs)

    def to_grpc(self) -> "Message":
        """The response as a ModelInferResponse.

        Raw contents if binary outputs were asked for, or an output was set as binary, or has no typed ones.
        Raises InferenceError if an output does not fit its declaration, or a parameter that gRPC cannot carry;
        ModuleNotFoundError: protobuf is not installed.
        """
        fields = _protobuf()
        typed = not (self._use_binary_outputs or any(tensor.binary_data for tensor in self.outputs))
        message: Message = fields.pb.ModelInferResponse.FromString(b"".join(fields.encode_response(self, typed)))
        return message

    def head(self) -> dict[str, Any]:
        """The fields of its JSON object but for the outputs; None where there is nothing to send.
        Raises InferenceError: a parameter that JSON cannot carry.
        """
        return {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "id": self.id,
            "parameters": sendable(self.parameters),
        }

    def to_dict(self) -> dict[str, Any]:
        """Id, model name, outputs and parameters as plain values."""
        outputs = [tensor.to_dict() for tensor in self.outputs]
        return {"id": self.id, "model_name": self.model_name, "outputs": outputs, "parameters": self.parameters}


def unexpected_output(name: str, model_name: str, there: Iterable[str]) -> InvalidInput:
    """The error for a client that asks for an output that the model does not have. ``there``: the names of those it has."""
    expected = ", ".join(map(repr, there)) or "none"
    return InvalidInput(f"Unexpected inference output {shown(name)!r} for model {model_name!r}; expected {expected}")


def wants_binary(name: str, requested: list[RequestedOutput], default: bool) -> bool:
    """Whether the output of that name is wanted as bytes; ``default`` is what the request as a whole says.

    The extension's text: `binary_data` of the output by name wins over `binary_data_output` of the request.

    Triton reads an output that is listed without `binary_data` as JSON, whatever the request says as a whole (seen with
    2.51), and so does the SDK. tritonclient does not notice: it sets `binary_data` on each output that it lists.
    """
    wanted = next((output.binary_data for output in requested if output.name == name), None)
    return default if wanted is None else wanted


def _protobuf() -> ModuleType:
    try:
        from mpserve.protocol.protobuf import fields
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "google":
            raise
        raise ModuleNotFoundError(
            "gRPC's messages need protobuf, which is not installed: pip install 'mpserve[grpc]'", name=missing.name
        ) from None
    return fields
