"""gRPC calls while workers come and go: a client with gRPC's default retry policy loses none."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import speaking
from tests.e2e.steered import Background
from tests.running import PATIENCE, Server, eventually

LASTING, CALLERS, FRESH = 8, 4, 4  # channels that last, callers on each, and callers that open a channel for each call
SHORT_LIVED = "--grpc_max_connection_age=1"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Calls:
    """Clients that call as long as the block lasts, and count how their calls end. Nothing is called twice."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.pids: Counter[int] = Counter()
        self.losses: Counter[str] = Counter()
        self._over = False

    def __enter__(self) -> "Calls":
        self._running = Background(lambda: asyncio.run(self._run()))
        self.flow(500)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        assert self._running.result() is None

    def flow(self, calls: int = 200) -> None:
        """Wait until so many calls more have ended."""
        before = self.ended
        eventually(lambda: self.ended - before >= calls)

    @property
    def ended(self) -> int:
        return self.pids.total() + self.losses.total()

    async def _run(self) -> None:
        lasting = (self._on_one_channel() for _ in range(LASTING))
        await asyncio.gather(*lasting, *(self._on_fresh_channels() for _ in range(FRESH)))

    async def _on_one_channel(self) -> None:
        async with grpc.aio.insecure_channel(self.address, OWN_CONNECTION) as channel:
            await asyncio.gather(*(self._call_on(channel) for _ in range(CALLERS)))

    async def _call_on(self, channel: grpc.aio.Channel) -> None:
        while not self._over:
            await self.call(channel)

    async def _on_fresh_channels(self) -> None:
        while not self._over:
            async with grpc.aio.insecure_channel(self.address, OWN_CONNECTION) as channel:
                await self.call(channel)

    async def call(self, channel: grpc.aio.Channel, timeout: float = PATIENCE) -> None:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        request = pb.ModelInferRequest(model_name="m")
        request.inputs.add(name="seconds", datatype="FP64", shape=[1]).contents.fp64_contents.append(0.0)
        try:
            answer = await infer(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self.losses[f"{error.code().name}: {error.details()}"] += 1
        else:
            self.pids[answer.outputs[0].contents.int64_contents[0]] += 1


def hup(server: Server) -> None:
    server.signal(signal.SIGHUP)


def retire_the_oldest(server: Server) -> None:
    server.signal(signal.SIGTTIN)
    eventually(lambda: server.states().get("ready") == 3)
    server.signal(signal.SIGTTOU)


def sigterm_to_a_worker(server: Server) -> None:
    psutil.Process(server.workers()[0]).terminate()


@pytest.mark.parametrize("disturb", [hup, retire_the_oldest, sigterm_to_a_worker])
def test_no_call_is_lost_while_workers_are_replaced(tmp_path: Path, disturb: Callable[[Server], None]) -> None:
    with speaking(tmp_path, "--workers=2", SHORT_LIVED) as (server, address):
        server.wait_ready(workers=2)
        with Calls(address) as calls:
            for _ in range(5):
                old = set(server.workers())
                disturb(server)
                eventually(lambda old=old: set(server.workers()) != old and len(server.workers()) == 2)
                eventually(lambda: server.states() == {"ready": 2, "loading": 0, "draining": 0})
                calls.flow()
        assert not calls.losses
        assert "accept" not in server.log  # gRPC's core does not complain of its closed sockets


def test_no_call_is_lost_when_a_second_server_takes_over(tmp_path: Path) -> None:
    with speaking(tmp_path, SHORT_LIVED, env={"GUNICORN_CMD_ARGS": "--pid server.pid"}) as (server, address):
        old = set(server.wait_ready().workers())
        with Calls(address) as calls:
            server.signal(signal.SIGUSR2)
            eventually(lambda: set(calls.pids) - old)
            second = psutil.Process(int((tmp_path / "server.pid.2").read_text()))
            server.signal(signal.SIGTERM)
            assert server.wait_end(within=20) == 0
            calls.flow()
        assert not calls.losses
        second.terminate()
        eventually(lambda: not server.family(), within=20)


@pytest.mark.parametrize("flag", [SHORT_LIVED, "--graceful_timeout=6"])
def test_a_server_that_ends_cancels_no_call(tmp_path: Path, flag: str) -> None:
    with speaking(tmp_path, flag) as (server, address):
        server.wait_ready()
        with Calls(address) as calls:
            server.signal(signal.SIGTERM)
            assert server.wait_end(within=20) == 0
        assert {loss.partition(":")[0] for loss in calls.losses} <= {"UNAVAILABLE"}, calls.losses


def test_a_burst_of_calls_is_answered(tmp_path: Path) -> None:
    """gRPC's core by itself cancels calls beyond 1,000 that wait to be taken up."""

    async def burst(calls: Calls) -> None:
        channels = [grpc.aio.insecure_channel(calls.address, OWN_CONNECTION) for _ in range(20)]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        # A call whose time is too short for the queue is refused, which a busy machine may bring about.
        await asyncio.gather(*(calls.call(channel, 600) for channel in channels for _ in range(200)))
        await asyncio.gather(*(channel.close() for channel in channels))

    with speaking(tmp_path) as (server, address):
        server.wait_ready()
        calls = Calls(address)
        asyncio.run(burst(calls))
        assert calls.pids.total() == 4000, calls.losses
