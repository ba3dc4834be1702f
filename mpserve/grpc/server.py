"""The gRPC server of one worker: made after the fork, on a port that all workers share (SO_REUSEPORT).

``hold_port`` is for the arbiter: with SO_REUSEPORT a second server on the port would not fail, but take a share of the
calls. Knows neither HTTP nor gunicorn; whoever starts a worker's HTTP server starts and ends this one.
"""

import errno
import os
import socket
from typing import NamedTuple

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mpserve.errors import ConfigurationError
from mpserve.grpc.calls import Calls, Count
from mpserve.grpc.health import Health
from mpserve.grpc.servicer import SERVICE, Servicer
from mpserve.protocol.protobuf import inference_pb2
from mpserve.serving.repository.core import ServerCore

SERVICES = (SERVICE.full_name, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
UNLIMITED = -1


class Tls(NamedTuple):
    """What TLS needs, as PEM: certificate chain and private key, and whose certificates clients must show, if they must."""

    certificate: bytes
    key: bytes
    client_authorities: bytes | None = None


class GrpcServer:
    """Serves ``core``'s models over gRPC.

    Args:
        core: the models, loaded or being loaded.
        host: address to listen on, IPv4 or IPv6.
        port: 0 takes any free one, which ``port`` then tells once it has started.
        tls: None: no TLS.
        max_receive: bytes of the largest message that is taken, after decompression.
        max_send: bytes of the largest message that is sent.
        count: told the method and the name of the status of each call of GRPCInferenceService that has ended.
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
        count: Count = lambda method, status: None,
    ) -> None:
        self.host = host
        self.port = port
        self.tls = tls
        self.options = (
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", max_receive),
            ("grpc.max_send_message_length", max_send),
        )
        self._servicer = Servicer(core, Calls(core.settings.access_log, count))
        self._health = Health(core, SERVICES)
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen and answer. Call it in the process and on the event loop that shall serve.

        Raises:
            ConfigurationError: it cannot listen there, or not with this certificate and key.
        """
        # Read by grpc when its first object is made. Else each handshake that fails, a port scan's say, is a line on stderr.
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        server = grpc.aio.server(options=self.options)
        server.add_generic_rpc_handlers((self._servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection(SERVICES, server, _described())
        self.port = self._listen(server)
        await server.start()
        self._server = server

    def retire(self) -> None:
        """Answer on, and say in the health service that this server is not to be sent to any more."""
        self._health.retire()

    async def drain(self, grace: float) -> None:
        """Take no more calls, and give those in hand ``grace`` seconds; what is left then is cancelled.

        Streams end when what they have sent is answered, since their clients may keep them open for ever.
        """
        self._health.end()
        self._servicer.end_streams()
        if self._server is not None:
            await self._server.stop(grace)

    async def stop(self) -> None:
        """End at once. Cuts a ``drain`` short."""
        if self._server is not None:
            await self._server.stop(None)

    def _listen(self, server: grpc.aio.Server) -> int:
        address = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        try:
            if self.tls is None:
                return server.add_insecure_port(address)
            credentials = grpc.ssl_server_credentials(
                [(self.tls.key, self.tls.certificate)],
                root_certificates=self.tls.client_authorities,
                require_client_auth=self.tls.client_authorities is not None,
            )
            return server.add_secure_port(address, credentials)
        except (RuntimeError, ValueError) as error:
            what = "" if self.tls is None else " with the given certificate and key"
            raise ConfigurationError(f"gRPC cannot listen on {address}{what}: {error}") from error


def hold_port(host: str, port: int) -> socket.socket:
    """In the arbiter, before any fork: make sure that nobody else has the port, and keep others from taking it.

    The socket that comes back takes no connections; hold it as long as workers may start. Do not call it where another
    server is to share the port, as after gunicorn's USR2.

    Raises:
        ConfigurationError: the port is taken, or cannot be had on this host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    holder = socket.socket(family)
    try:
        try:
            holder.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Perhaps only connections of a server that has ended linger there; with this they do not count.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host, port))
    except OSError as error:
        holder.close()
        raise ConfigurationError(
            f"cannot listen on {host} port {port} (--host, --grpc_port): {error.strerror or error}"
        ) from error
    # Set only after bind(): before, it would have shared the port with another server's instead of being refused.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return holder


def _described() -> descriptor_pool.DescriptorPool:
    """What reflection tells, in a pool of its own: ours is not in the default one, nor are the others in ours."""
    pool = descriptor_pool.DescriptorPool()
    for module in (inference_pb2, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    return pool
