"""Dynamic batching in a server: whatever protocol a request came by, it joins those that wait."""

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np

from mpserve.protocol.datatypes import Array
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e import calls
from tests.running import PATIENCE, eventually

SOURCE = """
import time
from pathlib import Path
from mpserve import Tensor, TensorModel

class Sizes(TensorModel):
    name = "m"
    inputs = [Tensor("x", "FP32", [-1, 2])]
    outputs = [Tensor("y", "FP32", [-1, 2]), Tensor("rows", "INT64", [-1])]
    max_batch_size = 8

    def predict(self, x):
        Path(f"begun-{time.monotonic_ns()}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return x + 1, [len(x)] * len(x)
"""


X = np.array([[1, 2]], np.float32)
V2 = {"name": "x", "shape": [1, 2], "datatype": "FP32"}


def by_v1(url: str, address: str) -> int:
    answer = httpx.post(f"{url}/v1/models/m:predict", json={"instances": X.tolist()}, timeout=30).json()
    return int(answer["predictions"][0]["rows"])


def by_v2(url: str, address: str) -> int:
    body = {"inputs": [{**V2, "data": [1, 2]}]}
    answer = httpx.post(f"{url}/v2/models/m/infer", json=body, timeout=30).json()
    return int(answer["outputs"][1]["data"][0])


def by_bytes(url: str, address: str) -> int:
    head = json.dumps({"inputs": [{**V2, "parameters": {"binary_data_size": X.nbytes}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = httpx.post(f"{url}/v2/models/m/infer", content=head + X.tobytes(), headers=length, timeout=30).json()
    return int(answer["outputs"][1]["data"][0])


def by_grpc(url: str, address: str) -> int:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    request.inputs.add(**V2)
    answer = calls.call(address, "ModelInfer", request, pb.ModelInferResponse)
    return int(np.frombuffer(answer.raw_output_contents[1], np.int64)[0])


def test_requests_of_every_protocol_are_predicted_together(tmp_path: Path) -> None:
    with calls.speaking(tmp_path, source=SOURCE) as (server, address), ThreadPoolExecutor(5) as clients:
        server.wait_ready()
        first = clients.submit(by_v2, server.url, address)
        eventually(lambda: list(tmp_path.glob("begun-*")))
        rest = [clients.submit(ask, server.url, address) for ask in (by_v1, by_v2, by_bytes, by_grpc)]
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 5)
        (tmp_path / "go").touch()
        assert first.result() == 1
        assert [answer.result() for answer in rest] == [4] * 4
        stats = server.client.get("/v2/models/m/stats").json()["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (5, 2)


TAGGED = """
import time
from mpserve import Tensor, TensorModel

class Tagged(TensorModel):
    name = "m"
    inputs = [Tensor("x", "FP32", [-1, 2])]
    outputs = [Tensor("y", "FP32", [-1, 2])]
    max_batch_size = 16

    def predict(self, x):
        time.sleep(0.001)  # so that others come meanwhile
        if (x < 0).any():
            raise ValueError(f"because of {x.min():.0f}")
        return x + 1
"""
CLIENTS, TURNS = 32, 40


class Connection:
    """One client: an HTTP connection of its own, and the gRPC connection of all."""

    def __init__(self, port: int, channel: grpc.aio.Channel, seed: int) -> None:
        self.port = port
        self.infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        self.seeded = random.Random(seed)
        self.writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: bytes, *fields: str) -> tuple[int, dict[str, str], bytes] | None:
        """Status, fields and body; None if the client has left before it had them."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = (f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}", *fields, "", "")
        whole = "\r\n".join(lines).encode() + body
        if self.leaves():
            self.writer.write(whole[: self.seeded.choice([None, -1, 10])])
            await asyncio.sleep(self.seeded.choice([0, 0.002]))
            self.writer.transport.abort()
            self.writer = None
            return None
        self.writer.write(whole)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        answered = dict(line.split(": ", 1) for line in head[1:] if line)
        body = await self.reader.readexactly(int(answered["content-length"]))
        if answered.get("connection") == "close":
            self.writer.close()
            self.writer = None
        return int(head[0].split()[1]), answered, body

    def leaves(self) -> bool:
        return self.seeded.random() < 0.15

    async def ask_v1(self, x: Array) -> Array | str | None:
        if (answer := await self.post("/v1/models/m:predict", json.dumps({"instances": x.tolist()}).encode())) is None:
            return None
        document = json.loads(answer[2])
        return np.array(document["predictions"], np.float32) if answer[0] == 200 else str(document["error"])

    async def ask_v2(self, x: Array) -> Array | str | None:
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
        if (answer := await self.post("/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode())) is None:
            return None
        document = json.loads(answer[2])
        if answer[0] != 200:
            return str(document["error"])
        return np.array(document["outputs"][0]["data"], np.float32).reshape(document["outputs"][0]["shape"])

    async def ask_bytes(self, x: Array) -> Array | str | None:
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
        document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        field = f"inference-header-content-length: {len(document)}"
        if (answer := await self.post("/v2/models/m/infer", document + x.tobytes(), field)) is None:
            return None
        status, fields, body = answer
        if status != 200:
            return str(json.loads(body)["error"])
        return np.frombuffer(body[int(fields["inference-header-content-length"]) :], np.float32).reshape(-1, 2)

    async def ask_grpc(self, x: Array) -> Array | str | None:
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        call = self.infer(request, timeout=PATIENCE)
        if self.leaves():
            await asyncio.sleep(self.seeded.choice([0, 0.002]))
            call.cancel()
            return None
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            return str(error.details())
        return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(-1, 2)

    async def run(self, number: int) -> int:
        """Ask by a random protocol each time; gives how often that went as it should."""
        seeded = self.seeded
        for turn in range(TURNS):
            fails = seeded.random() < 0.05
            tag = number * TURNS + turn + 1
            x = np.full((seeded.randint(1, 4), 2), -tag if fails else tag, np.float32)
            ask = seeded.choice([self.ask_v1, self.ask_v2, self.ask_bytes, self.ask_grpc])
            outcome = await ask(x)
            if isinstance(outcome, str):
                assert fails, outcome
                assert outcome.endswith(f"because of -{tag}")
            elif outcome is not None:
                assert not fails
                assert outcome.tolist() == (x + 1).tolist()
        if self.writer is not None:
            self.writer.close()
        return TURNS


def test_clients_of_every_protocol_that_come_and_go_get_their_own_answers(tmp_path: Path) -> None:
    with calls.speaking(tmp_path, "--workers=2", source=TAGGED) as (server, address):
        server.wait_ready(workers=2)

        async def main() -> list[int]:
            async with grpc.aio.insecure_channel(address) as channel:
                clients = [Connection(server.port, channel, seed) for seed in range(CLIENTS)]
                return await asyncio.gather(*(client.run(number) for number, client in enumerate(clients)))

        assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == [TURNS] * CLIENTS
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        assert "never retrieved" not in server.log
