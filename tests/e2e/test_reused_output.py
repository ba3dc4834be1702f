"""A model that returns the same array each time, behind a real server: many clients at once, each checks its own answer."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import speaking
from tests.formats import FORMATS, Format
from tests.running import PATIENCE

SOURCE = """
import asyncio
import numpy as np
from mpserve import Tensor, TensorModel

class Reusing(TensorModel):
    name = "plain"
    inputs = (Tensor("x", "FP64", (-1, -1)),)
    outputs = (Tensor("y", "FP64", (-1, -1)),)

    def load(self):
        self.memory = np.zeros(100_000)

    def predict(self, x):
        y = self.memory[: x.size].reshape(x.shape)
        np.multiply(x, 2, out=y)
        np.add(y, 1, out=y)
        return y

class Between(Reusing):
    name = "between"

    async def preprocess(self, payload, headers=None):
        return payload

    async def postprocess(self, result, headers=None):
        for _ in range(3):
            await asyncio.sleep(0)
        return result

class Batched(Reusing):
    name = "batched"
    max_batch_size = 500

models = [Reusing(), Between(), Batched()]
"""
MODELS = ("plain", "between", "batched")
CLIENTS = 4
SHAPES = ((3, 4), (70, 120))
"""The answer of the second has more than 64 kB."""


async def ask_http(client: httpx.AsyncClient, format: Format, model: str, headers: Any, body: bytes) -> list[Any]:
    response = await client.post(format.path.format(model), content=body, headers=headers)
    assert response.status_code == 200, (format.name, response.text)
    answered = dict(response.headers)
    answered.pop("content-encoding", None)  # httpx has undone it
    return format.read(answered, response.content)


async def ask_grpc(channel: grpc.aio.Channel, format: Format, model: str, body: bytes) -> list[Any]:
    request = pb.ModelInferRequest.FromString(body)
    request.model_name = model
    method = f"/inference.GRPCInferenceService/{format.call}"
    if format.call == "ModelInfer":
        answer = await channel.unary_unary(method)(request.SerializeToString(), timeout=PATIENCE)
        return format.read({}, answer)

    async def requests() -> AsyncIterator[bytes]:
        yield request.SerializeToString()

    parts = [part async for part in channel.stream_stream(method)(requests(), timeout=PATIENCE)]
    return [given for part in parts for given in format.read({}, part)]


async def one_client(url: str, address: str, number: int) -> None:
    """Ask every model in every format, in an order of its own."""
    random = np.random.default_rng(number)
    asked = [(format, model) for format in FORMATS for model in MODELS]
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client,
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        for index in random.permutation(len(asked)):
            format, model = asked[index]
            for shape in SHAPES:
                x = random.integers(0, 10**9, shape) / 8
                headers, body = format.write(x, {"timeout": 60_000_000} if random.random() < 0.3 else {})
                if format.path:
                    [given] = await ask_http(client, format, model, headers, body)
                else:
                    [given] = await ask_grpc(channel, format, model, body)
                assert np.array_equal(given, x.ravel() * 2 + 1), f"{format.name}, {model}: another request's answer"


def test_each_client_gets_its_own_numbers(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=1", source=SOURCE, target="model.py:models") as (server, address):
        server.wait_ready()

        async def main() -> None:
            await asyncio.gather(*(one_client(server.url, address, number) for number in range(CLIENTS)))

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
