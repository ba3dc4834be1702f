"""The gRPC server of one worker, on a port that all workers share (SO_REUSEPORT). Knows neither HTTP nor gunicorn."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mpserve.errors import ConfigurationError
from mpserve.grpc.authentication import Authentication
from mpserve.grpc.calls import Calls, Count
from mpserve.grpc.health import Health
from mpserve.grpc.listening import stop_listening
from mpserve.grpc.servicer import SERVICE, Servicer
from mpserve.protocol.protobuf import inference_pb2
from mpserve.serving.repository.core import ServerCore

REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"
SERVICES = (
    SERVICE.full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
    REFLECTION_V1,
)
UNLIMITED = -1
WITHOUT_END = 2**31 - 1
PING_INTERVAL = 5.0
"""Seconds between pings of a client that are too many. Clients may ping each 10 s, and a network may bring two pings closer."""
QUIET = 1.0
"""Seconds without a new call after which a drain waits for no more."""
AGE_JITTER = 1.1  # gRPC's core retires a connection at up to 10 % more than its age
GOODBYE = 0.5  # seconds in which a client hears that its connection is retired
SHARE = 0.5
"""The share of a drain in which all connections are retired. The rest of the time is for calls that run."""
SHORTEST_AGE = 0.5
"""Seconds. Clients of a server that has hardly any time for a drain must not connect all the time."""


def age_within(drain: float) -> float:
    """The age of a connection at which every connection is retired in a drain of so many seconds."""
    return max((drain * SHARE - GOODBYE) / AGE_JITTER, SHORTEST_AGE)


class Tls(NamedTuple):
    """PEM of the certificate chain, of the private key, and of the authorities of clients' certificates if these are required."""

    certificate: bytes
    key: bytes
    client_authorities: bytes | None = None


class GrpcServer:
    """Serves ``core``'s models over gRPC.

    Args:
        core: the models.
        host: address to listen on, IPv4 or IPv6.
        port: 0 means any free port, which ``self.port`` has after ``start``.
        tls: None means no TLS. ``self.tls`` may be replaced by another ``Tls``, which counts for new connections.
        max_receive: maximum bytes of a message that is received, after decompression.
        max_send: maximum bytes of a message that is sent.
        handshake_seconds: seconds in which a client must complete the handshakes of TLS and of HTTP/2.
        max_connection_age: seconds after which a client is asked to connect again. 0: never.
        count: called with the method and the name of the status when a call has ended.
    """

    def __init__(
        self,
        core: ServerCore,
        host: str,
        port: int,
        *,
        tls: Tls | None = None,
        max_receive: int = UNLIMITED,
        max_send: int = UNLIMITED,
        handshake_seconds: float = 120.0,
        max_connection_age: float = 0.0,
        count: Count = lambda method, status: None,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.max_connection_age = max_connection_age
        self.options = (
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", max_receive),
            ("grpc.max_send_message_length", max_send),
            ("grpc.server_handshake_timeout_ms", min(int(handshake_seconds * 1000), WITHOUT_END)),
            ("grpc.max_connection_age_ms", int(max_connection_age * 1000) or WITHOUT_END),
            # Beyond these gRPC's core would cancel calls before we see them. The queues of models have limits of their own.
            ("grpc.server.max_pending_requests", WITHOUT_END),
            ("grpc.server.max_pending_requests_hard_limit", WITHOUT_END),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", int(PING_INTERVAL * 1000)),
        )
        self._calls = Calls(core.settings.access_log, count)
        self._servicer = Servicer(core, self._calls)
        self._health = Health(core, SERVICES)
        known = core.authenticator
        self._interceptors = () if known is None else (Authentication(known, core.settings, self._calls),)
        self._server: grpc.aio.Server | None = None
        self._stopped = asyncio.Event()

    async def start(self) -> None:
        """Listen and answer, on the running event loop. Raises ConfigurationError: the server cannot listen."""
        server = grpc.aio.server(options=self.options, interceptors=self._interceptors)
        server.add_generic_rpc_handlers((self._servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        _add_reflection(server)
        self.port = self._listen(server)
        await server.start()
        self._server = server

    @property
    def total_requests(self) -> int:
        """Number of calls that were answered, with the requests of streams."""
        return self._calls.total_requests

    def retire(self) -> None:
        """Answer NOT_SERVING in the health service, and go on answering calls."""
        self._health.retire()

    async def drain(self, grace: float) -> None:
        """Let all clients go to other workers, then accept no more calls. Cancel the running calls after ``grace`` seconds.

        gRPC's core cancels the calls that reach it between the end of a server and the moment at which their client hears of
        it. So this goes on to answer until every connection has come to its age, of which its client heard before, or until no
        calls come. A stream ends when the requests that it has sent are answered, since its client may keep it open for ever.
        """
        if self._server is None:
            return
        deadline = time.monotonic() + grace
        await stop_listening(self.port)
        await self._wait_for_quiet(min(self._longest_life, grace * SHARE))
        self._health.end()
        self._servicer.end_streams()
        await self._server.stop(max(deadline - time.monotonic(), 0))

    async def stop(self) -> None:
        """End at once, also during a ``drain``."""
        self._stopped.set()
        if self._server is not None:
            await self._server.stop(None)

    @property
    def _longest_life(self) -> float:
        return self.max_connection_age * AGE_JITTER + GOODBYE if self.max_connection_age else 0.0

    async def _wait_for_quiet(self, at_most: float) -> None:
        end = time.perf_counter() + at_most
        while time.perf_counter() < min(end, self._calls.last_begun + QUIET) and not self._stopped.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 0.1)

    def _renewed_certificates(self, used: Tls) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        """Returns a function that grpc calls at each handshake, and that returns a certificate if there is a new one."""

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal used
            if self.tls is None or self.tls == used:
                return None
            used = self.tls
            return _certificates(used)

        return renewed

    def _listen(self, server: grpc.aio.Server) -> int:
        address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        try:
            if self.tls is None:
                return server.add_insecure_port(address)
            credentials = grpc.dynamic_ssl_server_credentials(
                _certificates(self.tls),
                self._renewed_certificates(self.tls),  # type: ignore[arg-type]  # None is allowed, as its docs say
                require_client_authentication=self.tls.client_authorities is not None,
            )
            return server.add_secure_port(address, credentials)
        except (RuntimeError, ValueError) as error:
            tls = "" if self.tls is None else " with the given certificate and key"
            raise ConfigurationError(f"gRPC cannot listen on {address}{tls}: {error}") from error


def _certificates(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key, tls.certificate)], tls.client_authorities)


def hold_port(host: str, port: int) -> socket.socket:
    """In the arbiter, before any fork: check that the port is free, and keep it from other servers.

    With SO_REUSEPORT a second server would not fail, but get a share of the calls. Keep the socket, which accepts no
    connections, as long as workers may start. Do not call this after gunicorn's USR2, when two servers share the port.

    Raises:
        ConfigurationError: the port is taken, or is not of this host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family)
    try:
        try:
            holder.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Perhaps only old connections of a server that has ended are left. With this option they do not count.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise ConfigurationError(
            f"cannot listen on {host} port {port} (--host, --grpc_port): {error.strerror or error}"
        ) from error
    # Set after bind(), which would otherwise share the port with another server.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def _add_reflection(server: grpc.aio.Server) -> None:
    """Answer reflection v1alpha and v1, which differ in their names alone. grpcio-reflection has v1alpha only."""
    servicer = reflection.aio.ReflectionServicer(SERVICES, pool=_reflected())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
            for name in (reflection.SERVICE_NAME, REFLECTION_V1)
        )
    )


def _reflected() -> descriptor_pool.DescriptorPool:
    """A pool of all descriptors for reflection, since ours are not in the default pool."""
    pool = descriptor_pool.DescriptorPool()
    for module in (inference_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    v1alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    v1 = text_format.Parse(str(v1alpha).replace("v1alpha", "v1"), descriptor_pb2.FileDescriptorProto())
    pool.Add(v1)
    return pool
