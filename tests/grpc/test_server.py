import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mpserve.errors import ConfigurationError
from mpserve.grpc.server import SERVICES, GrpcServer, Tls, hold_port
from tests.asgi import loaded
from tests.cases import each, until
from tests.grpc.models import Double
from tests.grpc.serving import HOST, Client, infer, refusal, serving, with_a_call_in_hand

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def live(server: GrpcServer, address: str = HOST, credentials: grpc.ChannelCredentials | None = None) -> bool:
    """Whether the server says that it is live, over a connection of its own."""
    target = f"{address}:{server.port}"
    channel = grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)
    async with channel:
        return (await Client(channel, server)("ServerLive", timeout=5)).live


def made_pair(folder: Path) -> tuple[bytes, bytes]:
    """A certificate and its key."""
    key_file, certificate_file = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key_file, "-out", certificate_file],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate_file.read_bytes(), key_file.read_bytes()


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
    async with with_a_call_in_hand() as (client, model, call):
        draining = asyncio.ensure_future(client.server.drain(3600))
        while True:
            try:
                await live(client.server)
            except grpc.aio.AioRpcError as error:
                if error.code() is UNAVAILABLE:
                    break
        model.let_go.set()
        assert await call.code() is grpc.StatusCode.OK
        await draining


async def test_what_is_left_after_the_grace_is_cancelled() -> None:
    async with with_a_call_in_hand() as (client, model, call):
        await client.server.drain(0.1)
        assert await call.code() is not grpc.StatusCode.OK
        await until(lambda: model.cancelled)


async def test_stop_cuts_a_drain_short() -> None:
    async with with_a_call_in_hand() as (client, _, call):
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
    async with serving(Double()) as first, serving(Double(), server={"port": first.server.port}) as second:
        assert second.server.port == first.server.port


async def test_ipv6() -> None:
    async with serving(Double(), server={"host": "::1"}) as client:
        assert await live(client.server, "[::1]")


@each("server, words", [
    ({"host": "192.0.2.1", "port": 1}, r"gRPC cannot listen on 192\.0\.2\.1:1"),
    ({"tls": Tls(b"no certificate", b"no key")}, "with the given certificate and key"),
])  # fmt: skip
async def test_a_server_that_cannot_start_says_why(server: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        async with serving(Double(), server=server):
            pass


async def reflected(client: Client, version: str, **request: str) -> reflection_pb2.ServerReflectionResponse:
    method = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return await method([reflection_pb2.ServerReflectionRequest(**request)]).read()


@each("version", ["v1alpha", "v1"])
async def test_reflection_lists_the_services_and_describes_each(version: str) -> None:
    async with serving(Double()) as client:
        listed = await reflected(client, version, list_services="")
        names = [service.name for service in listed.list_services_response.service]
        assert sorted(names) == sorted(SERVICES)
        for name in names:
            answer = await reflected(client, version, file_containing_symbol=name)
            files = answer.file_descriptor_response.file_descriptor_proto
            described = [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]
            assert any(f"{file.package}.{s.name}" == name for file in described for s in file.service)


async def test_with_tls_and_authorities_only_clients_that_are_known_are_answered(tmp_path: Path) -> None:
    certificate, key = made_pair(tmp_path)
    anonymous = grpc.ssl_channel_credentials(certificate)
    known = grpc.ssl_channel_credentials(certificate, key, certificate)
    for authorities, welcome, turned_away in ((None, anonymous, None), (certificate, known, anonymous)):
        async with serving(Double(), server={"tls": Tls(certificate, key, authorities)}) as client:
            assert await live(client.server, "localhost", welcome)
            code, _ = await refusal(live(client.server, "localhost", turned_away))
            assert code is UNAVAILABLE


@each("begun", [b"", b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n"])
@each("is_secret", [False, True])
async def test_a_client_that_does_not_complete_its_handshake_is_hung_up_on(
    tmp_path: Path, begun: bytes, is_secret: bool
) -> None:
    tls = Tls(*made_pair(tmp_path)) if is_secret else None
    async with serving(Double(), server={"tls": tls, "handshake_seconds": 0.5}) as client:
        reader, writer = await asyncio.open_connection(HOST, client.server.port)
        writer.write(begun)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 60)  # to the end, which gRPC by itself makes after 120 s
        writer.close()


async def test_a_held_port_is_refused_to_others_and_shared_with_the_workers() -> None:
    with hold_port(HOST, 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port))
        with pytest.raises(ConfigurationError, match=rf"cannot listen on 127.0.0.1 port {port} \(--host, --grpc_p"):
            hold_port(HOST, port)
        async with serving(Double(), server={"port": port}) as client:
            with pytest.raises(ConfigurationError, match="Address already in use"):
                hold_port(HOST, port)
            assert await live(client.server)


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


FORK = """
import os
import numpy

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
from mpserve.grpc import server
from tests.grpc.models import Double
from tests.grpc.serving import ask, infer

assert threads() == before, "the import has started a thread"

children = []
for _ in range(2):
    child = os.fork()
    if child == 0:
        ask(Double(), request=infer("double"))
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
