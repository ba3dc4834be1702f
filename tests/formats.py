"""Every format of an inference request to one tensor ``x`` and its answer ``y``: how both are written, for a test of them all."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mpserve.config.settings import Settings
from mpserve.http.inference.routes import InferenceRoutes
from mpserve.http.request_log import RequestLog
from mpserve.protocol.codec import Codec
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.codec import ProtobufCodec, ProtobufStreamCodec
from mpserve.serving.inference.request_head import RequestHead

Headers = dict[str, str]
Sent = tuple[Headers, bytes]
JSON = {"content-type": "application/json"}
BINARY = "inference-header-content-length"


class Format(NamedTuple):
    """A format.

    Attributes:
        path: of HTTP, with the model's name left open; empty: the body is a message of gRPC.
        write: from an array and parameters to headers and a body.
        read: from the headers and the body of an answer to the elements of its arrays, one for each part.
        call: of gRPC.
    """

    name: str
    path: str
    write: Callable[[Any, Mapping[str, Any]], Sent]
    read: Callable[[Headers, bytes], list[Any]]
    call: str = ""

    @property
    def carries_parts(self) -> bool:
        """Whether an answer may have several parts."""
        return self.name.startswith(("generate_stream", "gRPC stream"))

    def head(self, headers: Headers, model: str) -> RequestHead:
        """What a front end makes of the head of such a request."""
        if self.path:
            routes = InferenceRoutes(Settings(), RequestLog(False))
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            match = routes.match(self.path.format(model).encode(), raw)
            assert match is not None, self
            return match.head
        codec: Codec = ProtobufStreamCodec() if self.call == "ModelStreamInfer" else ProtobufCodec()
        return RequestHead(model, None, "predict", codec, headers)


def _v1(x: Any, parameters: Mapping[str, Any]) -> Sent:  # which has no parameters
    return JSON, json.dumps({"instances": x.tolist()}).encode()


def _v2(**more: Any) -> Callable[[Any, Mapping[str, Any]], Sent]:
    def write(x: Any, parameters: Mapping[str, Any]) -> Sent:
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP64", "data": x.ravel().tolist()}
        told = {"parameters": parameters} if parameters else {}
        return JSON, json.dumps({"inputs": [tensor], **told, **more}).encode()

    return write


def _binary(out: bool, **more: Any) -> Callable[[Any, Mapping[str, Any]], Sent]:
    def write(x: Any, parameters: Mapping[str, Any]) -> Sent:
        size = {"binary_data_size": x.nbytes}
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP64", "parameters": size}
        told = {**parameters, **({"binary_data_output": True} if out else {})}
        json_part = json.dumps({"inputs": [tensor], **more, **({"parameters": told} if told else {})}).encode()
        return {BINARY: f"{len(json_part)}"}, json_part + x.tobytes()

    return write


def _generate(x: Any, parameters: Mapping[str, Any]) -> Sent:
    return JSON, json.dumps({"x": x.ravel().tolist(), **parameters}).encode()


def _protobuf(typed: bool = False, outputs: bool = False) -> Callable[[Any, Mapping[str, Any]], Sent]:
    def write(x: Any, parameters: Mapping[str, Any]) -> Sent:
        message = pb.ModelInferRequest(model_name="m")
        tensor = message.inputs.add(name="x", datatype="FP64", shape=x.shape)
        if typed:
            tensor.contents.fp64_contents.extend(x.ravel().tolist())
        else:
            message.raw_input_contents.append(x.tobytes())
        if outputs:
            message.outputs.add(name="y")
        for name, value in parameters.items():
            message.parameters[name].int64_param = value
        return {}, message.SerializeToString()

    return write


def _of_json(headers: Headers, body: bytes) -> list[Any]:
    answer = json.loads(body)
    data = answer["outputs"][0]["data"] if "outputs" in answer else answer.get("predictions", answer.get("y"))
    return [np.array(data, float).ravel()]


def _of_v2(headers: Headers, body: bytes) -> list[Any]:
    if BINARY in headers:
        return [np.frombuffer(body[int(headers[BINARY]) :])]
    return _of_json(headers, body)


def _of_events(headers: Headers, body: bytes) -> list[Any]:
    return [_of_json(headers, event.removeprefix(b"data: "))[0] for event in body.split(b"\n\n") if event]


def _of_message(headers: Headers, body: bytes) -> list[Any]:
    answer = pb.ModelInferResponse.FromString(body)
    raw = answer.raw_output_contents
    return [np.frombuffer(raw[0]) if raw else np.array(answer.outputs[0].contents.fp64_contents)]


def _of_messages(headers: Headers, body: bytes) -> list[Any]:
    answer = pb.ModelStreamInferResponse.FromString(body)  # of parts one behind the other, the last
    assert not answer.error_message
    return _of_message(headers, answer.infer_response.SerializeToString())


def _zipped(write: Callable[[Any, Mapping[str, Any]], Sent]) -> Callable[[Any, Mapping[str, Any]], Sent]:
    def zipped(x: Any, parameters: Mapping[str, Any]) -> Sent:
        headers, body = write(x, parameters)
        return {**headers, "content-encoding": "gzip", "accept-encoding": "gzip"}, gzip.compress(body, 1)

    return zipped


def _unzipped(read: Callable[[Headers, bytes], list[Any]]) -> Callable[[Headers, bytes], list[Any]]:
    def unzipped(headers: Headers, body: bytes) -> list[Any]:
        return read(headers, gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)

    return unzipped


NAMED: dict[str, Any] = {"outputs": [{"name": "y"}]}
AS_BYTES: dict[str, Any] = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
INFER, VERSIONED = "/v2/models/{}/infer", "/v2/models/{}/versions/1/infer"

PLAIN = [
    Format("V1", "/v1/models/{}:predict", _v1, _of_json), Format("V2", INFER, _v2(), _of_v2),
    Format("V2 outputs", INFER, _v2(**NAMED), _of_v2), Format("V2 version", VERSIONED, _v2(), _of_v2),
    Format("V2 bytes out", INFER, _v2(**AS_BYTES), _of_v2), Format("binary", INFER, _binary(True), _of_v2),
    Format("binary, JSON out", INFER, _binary(False), _of_v2),
    Format("binary outputs", INFER, _binary(False, **AS_BYTES), _of_v2),
    Format("binary version", VERSIONED, _binary(True), _of_v2),
    Format("generate", "/v2/models/{}/generate", _generate, _of_json),
    Format("generate_stream", "/v2/models/{}/generate_stream", _generate, _of_events),
    Format("gRPC raw", "", _protobuf(), _of_message, "ModelInfer"),
    Format("gRPC typed", "", _protobuf(typed=True), _of_message, "ModelInfer"),
    Format("gRPC outputs", "", _protobuf(outputs=True), _of_message, "ModelInfer"),
    Format("gRPC stream", "", _protobuf(), _of_messages, "ModelStreamInfer"),
]  # fmt: skip


def _all() -> Iterator[Format]:
    for plain in PLAIN:
        yield plain
        if plain.path:
            yield plain._replace(name=f"{plain.name}, gzip", write=_zipped(plain.write), read=_unzipped(plain.read))


FORMATS = list(_all())
