"""The clients of a server under attack: each asks one request with numbers of its own, and tells what came back."""

import http.client
import json
import select
from collections.abc import Sequence

import grpc

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.running import PATIENCE

Parts = list[list[int]]
STATUS_OK = 200


class Refused(Exception):
    """Nobody listens, so the request was not sent."""


class HttpClient:
    """Asks over HTTP, on one connection for as long as the server lets it, or on a new one for each request."""

    protocol = "HTTP"
    factors: Sequence[int] = (2,)  # by which the model multiplies, one for each part of its answer
    path = "/v2/models/served/infer"
    datatype = "INT64"

    def __init__(self, port: int, grpc_address: str, number: int, waits: bool = False) -> None:
        self._keeps = number % 2 == 0
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, Parts]:
        """The id and the numbers of the answer."""
        tensor = {"name": "x", "shape": [len(numbers)], "datatype": self.datatype, "data": numbers}
        answer = json.loads(self._answer(json.dumps({"id": identity, "inputs": [tensor]})))
        return answer["id"], [answer["outputs"][0]["data"]]

    def _answer(self, body: str) -> bytes:
        connection = self._connection
        # A server may close an idle connection at any time, and a client must look before it sends (RFC 9112, 9.5).
        if not self._keeps or (connection.sock is not None and select.select([connection.sock], [], [], 0)[0]):
            connection.close()
        try:
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError as error:
                    raise Refused(str(error)) from error
            connection.request("POST", self.path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except Exception:
            connection.close()
            raise
        if response.status != STATUS_OK:
            raise RuntimeError(f"{response.status} {answer.decode()}")
        return answer

    def close(self) -> None:
        self._connection.close()


class EventsClient(HttpClient):
    """Asks for an answer in parts, and reads its server-sent events."""

    protocol = "HTTP stream"
    factors = (2, 3, 4)
    path = "/v2/models/streamed/generate_stream"

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, Parts]:
        text = self._answer(json.dumps({"id": identity, "x": numbers}))
        events = [json.loads(event.removeprefix(b"data: ")) for event in text.split(b"\n\n") if event]
        [told] = {event["id"] for event in events}
        return told, [event["y"] if isinstance(event["y"], list) else [event["y"]] for event in events]


class PeerClient(HttpClient):
    """Asks another server, whose model answers what it is asked, and which may tell no id."""

    factors = (1,)
    path = "/v2/models/bench/infer"
    datatype = "FP32"

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, Parts]:
        tensor = {"name": "x", "shape": [len(numbers)], "datatype": self.datatype, "data": numbers}
        answer = json.loads(self._answer(json.dumps({"id": identity, "inputs": [tensor]})))
        return identity, [answer["outputs"][0]["data"]]


class GrpcClient:
    """Asks over gRPC, on a channel of its own. ``waits``: a call waits for a connection (``wait_for_ready``).

    Without that, gRPC's client refuses each call by itself for a second after a connection that it could not make.
    """

    protocol = "gRPC"
    factors: Sequence[int] = (2,)
    model = "served"

    def __init__(self, port: int, grpc_address: str, number: int, waits: bool = False) -> None:
        self.waits = waits
        # Channels to one address share a connection otherwise.
        self._channel = grpc.insecure_channel(grpc_address, [("grpc.use_local_subchannel_pool", 1)])
        self._infer = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        self._stream = self._channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, Parts]:
        """The id and the numbers of the answer."""
        message = pb.ModelInferRequest(model_name=self.model, id=identity)
        message.inputs.add(name="x", datatype="INT64", shape=[len(numbers)]).contents.int64_contents.extend(numbers)
        try:
            answers = self._answers(message)
        except grpc.RpcError as error:
            # Said of a call for which there was no connection. gRPC says it of every call until it tries to connect again.
            if (error.details() or "").startswith("failed to connect to all addresses"):
                raise Refused(error.details()) from error
            raise RuntimeError(f"{error.code().name} {error.details()}") from error
        [told] = {answer.id for answer in answers}
        return told, [list(answer.outputs[0].contents.int64_contents) for answer in answers]

    def _answers(self, message: pb.ModelInferRequest) -> list[pb.ModelInferResponse]:
        return [self._infer(message, timeout=PATIENCE, wait_for_ready=self.waits)]

    def close(self) -> None:
        self._channel.close()


class GrpcStreamClient(GrpcClient):
    """Asks for an answer in parts over gRPC."""

    protocol = "gRPC stream"
    factors = (2, 3, 4)
    model = "streamed"

    def _answers(self, message: pb.ModelInferRequest) -> list[pb.ModelInferResponse]:
        answers = list(self._stream(iter([message]), timeout=PATIENCE, wait_for_ready=self.waits))
        errors = [answer.error_message for answer in answers if answer.error_message]
        if errors or not answers:
            raise RuntimeError(f"{len(answers)} parts, {errors}")
        return [answer.infer_response for answer in answers]


Kind = type[HttpClient] | type[GrpcClient]
KINDS: list[Kind] = [HttpClient, EventsClient, GrpcClient, GrpcStreamClient]
