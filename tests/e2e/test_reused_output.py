"""Models that return the same array each time, one of them batched, behind a real server.

Many clients ask at once in every format. Some leave, some send a row that fails, and each checks its own answer.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.documents import ROOT
from tests.e2e.calls import speaking
from tests.formats import FORMATS, Format
from tests.running import PATIENCE, eventually

SOURCE = (ROOT / "tests/models/reusing.py").read_text()
MODELS = ("plain", "between", "batched")
CLIENTS = 4
SHAPES = ((3, 4), (70, 120))
"""The answer of the second has more than 64 kB."""


async def ask_http(client: httpx.AsyncClient, format: Format, model: str, headers: Any, body: bytes) -> list[Any] | str:
    """The arrays of the answer, or the error."""
    response = await client.post(format.path.format(model), content=body, headers=headers)
    if response.status_code != 200:
        return str(response.json()["error"])
    answered = dict(response.headers)
    answered.pop("content-encoding", None)  # httpx has undone it
    return format.read(answered, response.content)


async def ask_grpc(channel: grpc.aio.Channel, format: Format, model: str, body: bytes) -> list[Any] | str:
    request = pb.ModelInferRequest.FromString(body)
    request.model_name = model
    method = f"/inference.GRPCInferenceService/{format.call}"
    try:
        if format.call == "ModelInfer":
            answer = await channel.unary_unary(method)(request.SerializeToString(), timeout=PATIENCE)
            return format.read({}, answer)

        async def requests() -> AsyncIterator[bytes]:
            yield request.SerializeToString()

        [part] = [part async for part in channel.stream_stream(method)(requests(), timeout=PATIENCE)]
        return pb.ModelStreamInferResponse.FromString(part).error_message or format.read({}, part)
    except grpc.aio.AioRpcError as error:
        return str(error.details())


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
            if fails := random.random() < 0.05:
                x.flat[-1] = -1 - index - 1000 * number
            headers, body = format.write(x, {"timeout": 60_000_000} if random.random() < 0.3 else {})
            asking = asyncio.ensure_future(
                ask_http(client, format, model, headers, body)
                if format.path
                else ask_grpc(channel, format, model, body)
            )
            if random.random() < 0.1:
                await asyncio.wait({asking}, timeout=random.choice([0, 0.002]))
                asking.cancel()
                await asyncio.wait({asking})
                continue
            outcome = await asking
            if fails:
                assert isinstance(outcome, str), f"{format.name}, {model}: {outcome}"
                assert outcome.endswith(f"because of {x.flat[-1]:.0f}")
            else:
                assert np.array_equal(outcome[0], x.ravel() * 2 + 1), f"{format.name}, {model}: {outcome}"


def test_each_client_gets_its_own_numbers(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=2", source=SOURCE, target="model.py:models") as (server, address):
        server.wait_ready(workers=2)

        async def main() -> None:
            await asyncio.gather(*(one_client(server.url, address, number) for number in range(CLIENTS)))

        asyncio.run(asyncio.wait_for(main(), PATIENCE))
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        assert "never retrieved" not in server.log
