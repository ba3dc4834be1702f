import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpserve.grpc.server import SERVICES
from tests.cases import each, until
from tests.grpc.models import Double
from tests.grpc.serving import Client, refusal, serving

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def status(client: Client, service: str = "") -> int:
    return (await health_pb2_grpc.HealthStub(client.channel).Check(asked(service))).status


@each("service", ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"])
async def test_health_is_readiness(service: str) -> None:
    model = Double()
    async with serving(model) as client:
        for ready, told in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
            model.ready = ready
            assert await status(client, service) == told


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListResponse"), reason="this release has no List")
async def test_the_health_of_all_services_is_listed() -> None:
    model = Double()
    async with serving(model) as client:
        ask = client.channel.unary_unary(
            "/grpc.health.v1.Health/List", response_deserializer=health_pb2.HealthListResponse.FromString
        )
        for ready, told in ((True, SERVING), (False, NOT_SERVING)):
            model.ready = ready
            statuses = (await ask(b"")).statuses
            assert {name: answer.status for name, answer in statuses.items()} == dict.fromkeys(("", *SERVICES), told)


async def test_an_unknown_service_is_not_found_and_unknown_to_a_watcher() -> None:
    async with serving(Double()) as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        code, words = await refusal(stub.Check(asked("nope")))
        assert (code, words) == (grpc.StatusCode.NOT_FOUND, "there is no service 'nope' here")
        assert (await stub.Watch(asked("nope")).read()).status == UNKNOWN


async def test_a_retired_server_says_so_and_still_answers() -> None:
    async with serving(Double()) as client:
        client.server.retire()
        assert await status(client) == NOT_SERVING
        assert (await client("ServerLive")).live


async def test_a_watcher_learns_of_changes_and_is_let_go_by_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpserve.grpc.health.WATCH_EVERY", 0.02)
    model = Double()
    async with serving(model) as client:
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(asked())
        for ready, told in ((True, SERVING), (False, NOT_SERVING), (True, SERVING)):
            model.ready = ready
            assert (await watch.read()).status == told
        await client.server.drain(3600)
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF


async def test_a_watcher_that_goes_away_is_forgotten() -> None:
    async with serving(Double()) as client:
        before = len(asyncio.all_tasks())
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(asked())
        await watch.read()
        assert len(asyncio.all_tasks()) > before + 1  # the look below would notice a watcher that is left
        watch.cancel()
        await until(lambda: len(asyncio.all_tasks()) <= before + 1)
