"""``from_grpc`` and ``to_grpc`` of the messages, as scripts for the kserve SDK call them."""

import subprocess
import sys

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each

RAW = np.array([1, 2], np.float32).tobytes()


def foreign(message: str) -> type:
    """The message's class out of another pool, as the SDK and tritonclient bring their own."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{message}"))


def as_array(values: list[float]) -> InferInput:
    tensor = InferInput("x", [len(values)], "FP32")
    tensor.set_data_from_numpy(np.array(values, np.float32))
    return tensor


@each("kind", [pb.ModelInferRequest, foreign("ModelInferRequest")])
def test_a_request_is_read_from_a_message_of_any_class(kind: type) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2]}
    message = kind(
        model_name="m", model_version="3", id="7", inputs=[tensor], outputs=[{"name": "y"}],
        parameters={"p": {"int64_param": 1}}, raw_input_contents=[RAW],
    )  # fmt: skip
    wanted = InferRequest("m", [as_array([1, 2])], "7", None, True, {"p": 1}, [RequestedOutput("y")], "3")
    request = InferRequest.from_grpc(message)
    assert request == wanted
    assert request.from_grpc is True
    assert request.use_binary_outputs


@each("kind", [pb.ModelInferResponse, foreign("ModelInferResponse")])
def test_a_response_is_read_from_a_message_of_any_class(kind: type) -> None:
    output = {"name": "y", "datatype": "INT32", "shape": [2], "contents": {"int_contents": [1, 2]}}
    response = InferResponse.from_grpc(kind(model_name="m", id="7", outputs=[output]))
    assert response == InferResponse("7", "m", [InferOutput("y", [2], "INT32", [1, 2])], from_grpc=True)


@each("raw", [False, True])
def test_bytes_that_grpc_carried_are_bytes_to_the_model_and_text_is_read_by_as_string(raw: bool) -> None:
    tensor = InferInput("x", [1], "BYTES", ["text"])
    if raw:
        tensor.set_data_from_numpy(tensor.as_numpy())
    (received,) = InferRequest.from_grpc(InferRequest("m", [tensor]).to_grpc()).inputs
    assert (received.data, received.as_string()) == ([b"text"], ["text"])
    response = InferResponse("7", "m", [InferOutput("y", [1], "BYTES", ["text"])], use_binary_outputs=raw)
    (answered,) = InferResponse.from_grpc(response.to_grpc()).outputs
    assert answered.data == [b"text"]


@each("inputs, raw", [
    ([InferInput("x", [2], "FP32", [1, 2])], 0), ([as_array([1, 2])], 1), ([InferInput("h", [1], "FP16", [1])], 1),
    ([InferInput("h", [1], "INT8", [1]), as_array([1, 2])], 2),
])  # fmt: skip
def test_a_request_goes_typed_unless_an_input_was_set_as_binary_or_has_no_typed_contents(
    inputs: list[InferInput], raw: int
) -> None:
    message = InferRequest("m", inputs, "7", parameters={"p": True}).to_grpc()
    assert len(message.raw_input_contents) == raw
    assert InferRequest.from_grpc(message).inputs == inputs
    assert (message.model_name, message.id, message.parameters["p"].bool_param) == ("m", "7", True)


@each("datatype, binary, raw", [("FP32", False, 0), ("FP32", True, 1), ("FP16", False, 1)])
def test_a_response_goes_typed_unless_binary_outputs_were_asked_for(datatype: str, binary: bool, raw: int) -> None:
    outputs = [InferOutput("y", [2], datatype, [1, 2])]
    message = InferResponse("7", "m", outputs, use_binary_outputs=binary).to_grpc()
    assert len(message.raw_output_contents) == raw
    assert InferResponse.from_grpc(message).outputs == outputs


@each("call", ["InferRequest('m', []).to_grpc()", "InferResponse.from_grpc(None)"])
def test_without_protobuf_they_say_what_to_install(call: str) -> None:
    script = f"import sys; sys.modules['google'] = None; from mpserve import InferRequest, InferResponse; {call}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: gRPC's messages need protobuf, which is not installed: pip install 'mpserve[grpc]'"
    )
