"""Every method answers known callers only, but for those that are public, and some managers only: ``WHO`` says which."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mpserve.grpc.server import REFLECTION_V1, SERVICES
from mpserve.grpc.servicer import SERVICE
from tests.grpc.models import Echo
from tests.grpc.serving import infer, refusal, run, serving

KEY, OPS = "alice-0123456789abcdef", "ops-0123456789abcdef"
KNOWN, MANAGER = (("x-api-key", KEY),), (("authorization", f"Bearer {OPS}"),)
HEALTH = {"ServerLive", "ServerReady"} | {
    method.name for method in health_pb2.DESCRIPTOR.services_by_name["Health"].methods
}
EVERYBODY, CALLERS, MANAGERS = "everybody", "callers", "managers"
WHO = {
    **dict.fromkeys(HEALTH, EVERYBODY),
    **dict.fromkeys((
        "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "ModelStreamInfer", "ModelConfig", "ModelStatistics",
        "RepositoryIndex", "ServerReflectionInfo",
    ), CALLERS),
    **dict.fromkeys((
        "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
        *(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")),
    ), MANAGERS),
}  # fmt: skip
"""Who may call each method, if callers must be known. A new method needs a row here."""
MODULES = {"Health": health_pb2, "ServerReflection": reflection_pb2}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"alice {KEY}\nops {OPS}\n")
    return file


def every_method() -> list[str]:
    named = {service.full_name: service for service in (SERVICE, *(
        service for module in MODULES.values() for service in module.DESCRIPTOR.services_by_name.values()))}  # fmt: skip
    named[REFLECTION_V1] = named["grpc.reflection.v1alpha.ServerReflection"]
    assert named.keys() == set(SERVICES)
    return [f"/{name}/{method.name}" for name, service in named.items() for method in service.methods]


async def codes(channel: grpc.aio.Channel, metadata: Any = None) -> dict[str, Any]:
    """By method: the code of a call with one empty message. A method that goes on to answer has None."""

    async def code(method: str) -> Any:
        call = channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=20)
        try:
            await asyncio.wait_for(call.read(), 20)
        except grpc.aio.AioRpcError as error:
            return error.code()
        call.cancel()
        return None

    return {method: await code(method) for method in every_method()}


@pytest.mark.parametrize(
    ("public", "free"), [("health", HEALTH), ("none", set()), ("docs,metrics", {"ServerReflectionInfo"})]
)
def test_each_method_is_refused_without_a_key(keys: Path, public: str, free: set[str]) -> None:
    async def test() -> None:
        counted: list[tuple[str, str]] = []
        server = {"count": lambda *call: counted.append(call)}
        async with serving(Echo(), server=server, api_keys_file=str(keys), public=public) as client:
            found = await codes(client.channel)
            let_in = {method for method, code in found.items() if code != grpc.StatusCode.UNAUTHENTICATED}
            assert {method.rpartition("/")[2] for method in let_in} == free
            refused = [method.rpartition("/")[2] for method in found if method not in let_in]
            assert counted[: len(refused)]
            assert set(counted) >= {(method, "UNAUTHENTICATED") for method in refused}
            assert await refusal(client("ModelInfer", infer("echo"), metadata=(("x-api-key", KEY[:-1]),))) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "the request has an unknown key: expected one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
            )

    run(test())


def test_with_a_key_each_is_answered_as_without_keys(keys: Path) -> None:
    async def test() -> None:
        async with serving(Echo()) as client:
            open_to_all = await codes(client.channel)
        async with serving(Echo(), api_keys_file=str(keys), managers="ops") as client:
            assert await codes(client.channel, MANAGER) == open_to_all
            assert grpc.StatusCode.UNAUTHENTICATED not in open_to_all.values()
            code, words = await refusal(client("LogSettings", metadata=KNOWN))
            assert (code, "'alice'" in words or '"alice"' in words) == (grpc.StatusCode.PERMISSION_DENIED, True)

    run(test())


def test_each_method_is_in_the_table_and_answers_those_alone_that_it_names(keys: Path) -> None:
    stranger = (("x-api-key", "eve-0123456789abcdef"),)
    senders = {"nobody": None, "a stranger": stranger, "a caller": KNOWN, "a manager": MANAGER}
    let_in = {EVERYBODY: set(senders), CALLERS: {"a caller", "a manager"}, MANAGERS: {"a manager"}}
    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

    async def test() -> None:
        async with serving(Echo(), api_keys_file=str(keys), managers="ops", allow_client_shm=True) as client:
            for sender, metadata in senders.items():
                found = {
                    method.rpartition("/")[2]: code for method, code in (await codes(client.channel, metadata)).items()
                }
                assert found.keys() == WHO.keys()
                for method, who in WHO.items():
                    expected = refusals[sender == "a caller"] if sender not in let_in[who] else None
                    assert (found[method] if found[method] in refusals else None) == expected, (method, sender)

    run(test())


def test_a_stream_ends_with_its_key(keys: Path) -> None:
    async def test() -> None:
        async with serving(Echo(), api_keys_file=str(keys)) as client:
            call = client.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(metadata=KNOWN)
            request = infer("echo").SerializeToString()
            await call.write(request)
            assert await call.read()
            keys.write_text(f"ops {OPS}\n")

            async def go_on() -> None:
                for _ in range(200):
                    await call.write(request)
                    await call.read()
                    await asyncio.sleep(0.05)

            with pytest.raises(grpc.aio.AioRpcError) as end:
                await go_on()
            assert end.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert (await refusal(client("ModelInfer", infer("echo"), metadata=KNOWN)))[0] == end.value.code()
            await client("ModelInfer", infer("echo"), metadata=MANAGER)

    run(test())
