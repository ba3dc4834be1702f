"""Models that return the same array each time, one of them batched: many clients of a real server get their own numbers.

What failing requests and clients that leave do to their neighbours is in tests/serving.
"""

import asyncio
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
SHAPES = ((3, 4), (70, 120))
"""The answer of the second has more than 64 kB."""


async def ask(client: httpx.AsyncClient, channel: grpc.aio.Channel, format: Format, model: str, x: Any) -> Any:
    headers, body = format.write(x, {})
    if format.path:
        response = (await client.post(format.path.format(model), content=body, headers=headers)).raise_for_status()
        answered = dict(response.headers)
        answered.pop("content-encoding", None)  # httpx has undone it
        return format.read(answered, response.content)
    request = pb.ModelInferRequest.FromString(body)
    request.model_name = model
    raw = request.SerializeToString()
    method = f"/inference.GRPCInferenceService/{format.call}"
    if format.call == "ModelInfer":
        return format.read({}, await channel.unary_unary(method)(raw, timeout=PATIENCE))
    [part] = [part async for part in channel.stream_stream(method)(iter([raw]), timeout=PATIENCE)]
    return format.read({}, part)


async def one_client(url: str, address: str, number: int) -> None:
    """Ask every model in every format, in an order of its own."""
    random = np.random.default_rng(number)
    asked = [(format, model, shape) for format in FORMATS for model in MODELS for shape in SHAPES]
    async with (
        httpx.AsyncClient(base_url=url, timeout=PATIENCE, verify=False) as client,
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        for index in random.permutation(len(asked)):
            format, model, shape = asked[index]
            x = random.integers(0, 10**9, shape) / 8
            [y] = await ask(client, channel, format, model, x)
            assert np.array_equal(y, x.ravel() * 2 + 1), f"{format.name}, {model}: {y}"


def test_each_client_gets_its_own_numbers(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=2", source=SOURCE, target="model.py:models") as (server, address):
        server.wait_ready(workers=2)

        async def main() -> None:
            await asyncio.gather(*(one_client(server.url, address, number) for number in range(4)))

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
