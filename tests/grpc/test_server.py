import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from mpserve.errors import ConfigurationError
from mpserve.grpc.server import SERVICES, GrpcServer, Tls, hold_port
from tests.asgi import loaded
from tests.grpc.models import Double, Held
from tests.grpc.serving import HOST, Client, infer, refusal, serving


def large(elements: int) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [elements]}
    return infer("double", inputs=[tensor], raw_input_contents=[np.zeros(elements, np.float32).tobytes()])


async def test_an_answer_beyond_the_limit_is_refused() -> None:
    async with serving(Double(), server={"max_send": 10000}) as client:
        code, _ = await refusal(client("ModelInfer", large(3000)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await client("ModelInfer", large(2000))


async def test_messages_larger_than_grpcs_own_limit_pass() -> None:
    async with serving(Double()) as client:
        response = await client("ModelInfer", large(2_000_000))
        assert len(response.raw_output_contents[0]) == 8_000_000


async def test_a_drain_finishes_calls_in_hand_and_takes_no_more() -> None:
    model = Held()
    async with serving(model) as client:
        call = client("ModelInfer", infer("held"))
        waiting = asyncio.ensure_future(call.code())
        await model.begun.acquire()
        draining = asyncio.ensure_future(client.server.drain(3600))
        while True:
            async with grpc.aio.insecure_channel(f"{HOST}:{client.server.port}") as channel:
                code, _ = await refused_or_not(Client(channel, client.server)("ServerLive", timeout=5))
                if code is grpc.StatusCode.UNAVAILABLE:
                    break
        model.let_go.set()
        assert await waiting is grpc.StatusCode.OK
        await draining


async def refused_or_not(call: Any) -> tuple[grpc.StatusCode, str]:
    return await call.code(), await call.details() or ""


async def test_what_is_left_after_the_grace_is_cancelled() -> None:
    model = Held()
    async with serving(model) as client:
        call = client("ModelInfer", infer("held"))
        waiting = asyncio.ensure_future(call.code())
        await model.begun.acquire()
        await client.server.drain(0.1)
        assert await waiting is not grpc.StatusCode.OK
        while not model.cancelled:
            await asyncio.sleep(0.01)


async def test_stop_cuts_a_drain_short() -> None:
    model = Held()
    async with serving(model) as client:
        call = client("ModelInfer", infer("held"))
        await model.begun.acquire()
        draining = asyncio.ensure_future(client.server.drain(3600))
        await asyncio.sleep(0)
        await client.server.stop()
        await draining
        assert await call.code() is not grpc.StatusCode.OK


async def test_a_server_that_never_started_can_be_ended() -> None:
    async with loaded(Double()) as core:
        server = GrpcServer(core, HOST, 0)
        await server.drain(1)
        await server.stop()
        assert server.port == 0  # and it has not begun to listen on the way


async def test_two_servers_share_a_port() -> None:
    async with loaded(Double()) as core:
        first = GrpcServer(core, HOST, 0)
        await first.start()
        second = GrpcServer(core, HOST, first.port)
        await second.start()
        assert second.port == first.port
        await second.stop()
        await first.stop()


async def test_an_address_that_cannot_be_had_is_told() -> None:
    async with loaded(Double()) as core:
        with pytest.raises(ConfigurationError, match=r"gRPC cannot listen on 192\.0\.2\.1:1"):
            await GrpcServer(core, "192.0.2.1", 1).start()


async def test_ipv6() -> None:
    async with loaded(Double()) as core:
        server = GrpcServer(core, "::1", 0)
        await server.start()
        async with grpc.aio.insecure_channel(f"[::1]:{server.port}") as channel:
            assert (await Client(channel, server)("ServerLive")).live
        await server.stop()


# Reflection


async def reflected(client: Client, **request: str) -> reflection_pb2.ServerReflectionResponse:
    async def requests() -> Any:
        yield reflection_pb2.ServerReflectionRequest(**request)

    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    return await stub.ServerReflectionInfo(requests()).read()


async def test_reflection_lists_the_services_and_describes_each() -> None:
    async with serving(Double()) as client:
        listed = await reflected(client, list_services="")
        names = [service.name for service in listed.list_services_response.service]
        assert sorted(names) == sorted(SERVICES)
        for name in names:
            answer = await reflected(client, file_containing_symbol=name)
            files = answer.file_descriptor_response.file_descriptor_proto
            described = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
            assert any(f"{file.package}.{s.name}" == name for file in described for s in file.service)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return Tls((folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes())


async def test_tls(certificate: Tls) -> None:
    credentials = grpc.ssl_channel_credentials(certificate.certificate)
    async with (
        serving(Double(), server={"tls": certificate}) as client,
        grpc.aio.secure_channel(f"localhost:{client.server.port}", credentials) as channel,
    ):
        assert (await Client(channel, client.server)("ServerLive")).live
        assert (await refusal(client("ServerLive", timeout=5)))[0] is grpc.StatusCode.UNAVAILABLE


async def test_clients_must_show_a_certificate_if_authorities_are_given(certificate: Tls) -> None:
    mutual = certificate._replace(client_authorities=certificate.certificate)
    async with serving(Double(), server={"tls": mutual}) as client:
        address = f"localhost:{client.server.port}"
        anonymous = grpc.ssl_channel_credentials(certificate.certificate)
        async with grpc.aio.secure_channel(address, anonymous) as channel:
            code, _ = await refusal(Client(channel, client.server)("ServerLive", timeout=5))
            assert code is grpc.StatusCode.UNAVAILABLE
        known = grpc.ssl_channel_credentials(certificate.certificate, certificate.key, certificate.certificate)
        async with grpc.aio.secure_channel(address, known) as channel:
            assert (await Client(channel, client.server)("ServerLive")).live


async def test_a_certificate_that_is_none_is_told() -> None:
    async with loaded(Double()) as core:
        with pytest.raises(ConfigurationError, match="with the given certificate and key"):
            await GrpcServer(core, HOST, 0, tls=Tls(b"no certificate", b"no key")).start()


# The port


async def test_a_held_port_is_refused_to_others_and_shared_with_the_workers() -> None:
    async with loaded(Double()) as core:
        with hold_port(HOST, 0) as holder:
            port = holder.getsockname()[1]
            with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1 port {port} \(--host, --grpc_p"):
                hold_port(HOST, port)
            server = GrpcServer(core, HOST, port)
            await server.start()
            with pytest.raises(ConfigurationError, match="Address already in use"):
                hold_port(HOST, port)
            async with grpc.aio.insecure_channel(f"{HOST}:{port}") as channel:
                assert (await Client(channel, server)("ServerLive")).live
            await server.stop()


def test_connections_that_linger_do_not_keep_a_port() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, 0))
        listener.listen()
        address = listener.getsockname()
        client = socket.create_connection(address)
        accepted, _ = listener.accept()
        accepted.close()  # first, so that the connection lingers on this side
        assert client.recv(1) == b""
        client.close()
    with pytest.raises(OSError, match="in use"), socket.socket() as plain:
        plain.bind(address)
    hold_port(*address).close()


def test_a_held_port_takes_no_connections() -> None:
    with hold_port(HOST, 0) as holder, pytest.raises(ConnectionRefusedError):
        socket.create_connection(holder.getsockname())


FORK = """
import os
import numpy

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
from mpserve.grpc import server
from tests.grpc.models import Double
from tests.grpc.serving import infer, run, serving

assert threads() == before, "the import has started a thread"

async def work():
    async with serving(Double()) as client:
        await client("ModelInfer", infer("double"))

children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        run(work())
        os._exit(0)
    children.append(child)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_it_may_be_imported_before_a_fork_and_serve_after_it() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60, cwd=root)


def test_nothing_of_grpc_is_imported_before_it_is_used() -> None:
    code = "import sys, mpserve.cli, mpserve.http.app, mpserve.grpc; print([n for n in sys.modules if n == 'grpc'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
