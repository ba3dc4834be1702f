"""Sets gRPC up in the arbiter and in each worker. gRPC is an extra (``mpserve[grpc]``) and imported only where it is used."""

import ssl
from collections.abc import MutableMapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.metrics import metrics

if TYPE_CHECKING:
    import socket

    from mpserve.grpc.server import GrpcServer, Tls

DISTRIBUTIONS = ("protobuf", "grpcio", "grpcio-health-checking", "grpcio-reflection")
PACKAGES = ("grpc", "grpc_health", "grpc_reflection")
VARIABLES = {"GRPC_VERBOSITY": "ERROR", "GRPC_ENABLE_FORK_SUPPORT": "0"}
"""Otherwise grpc prints a line for each handshake that fails, and goes on in the processes that a model forks: some of them abort
(``epoll_wait error: Bad file descriptor``)."""


class _Port:
    holder: "socket.socket | None" = None


def configure(environment: MutableMapping[str, str]) -> None:
    """Before grpc is imported, which reads these variables."""
    for variable, value in VARIABLES.items():
        environment.setdefault(variable, value)


def is_offered(settings: Settings) -> bool:
    """Whether gRPC is enabled, which is the default, and installed."""
    return settings.enable_grpc and all(find_spec(package) is not None for package in PACKAGES)


def hold_port(settings: Settings) -> None:
    """In the arbiter, before the first fork: keep the port for our workers, which share it by SO_REUSEPORT.

    Importing grpc here starts no thread, and the workers share the memory of its code.

    Raises:
        ConfigurationError: another process has the port, or the installed packages do not fit each other.
    """
    try:
        from mpserve.grpc.server import hold_port
    except Exception as error:  # generated code raises errors of its own if protobuf is too old
        found = ", ".join(f"{name} {version(name)}" for name in DISTRIBUTIONS)
        raise ConfigurationError(
            f"gRPC cannot be imported, with {found} installed: {type(error).__name__}: {error};"
            " pip install --upgrade 'mpserve[grpc]'"
        ) from error

    _Port.holder = hold_port(settings.host, settings.grpc_port)


def port(settings: Settings) -> int:
    return settings.grpc_port if _Port.holder is None else int(_Port.holder.getsockname()[1])


def grpc_server(core: ServerCore, cfg: Any, drain: float) -> "GrpcServer":
    """In a worker: make the server, not yet started. ``cfg`` is gunicorn's, for TLS. ``drain``: seconds in which it must end."""
    from mpserve.grpc.server import GrpcServer, age_within

    settings = core.settings
    age = settings.grpc_max_connection_age
    return GrpcServer(
        core,
        settings.host,
        port(settings),
        tls=tls(cfg),
        max_receive=settings.grpc_max_receive_message_length,
        max_send=settings.grpc_max_send_message_length,
        handshake_seconds=settings.header_timeout,
        max_connection_age=age and min(age, age_within(drain)),
        count=metrics().count_call,
    )


def tls(cfg: Any) -> "Tls | None":
    """The certificate, from gunicorn's options. Raises OSError: a file cannot be read."""
    from mpserve.grpc.server import Tls

    if not cfg.certfile:
        return None
    clients = Path(cfg.ca_certs).read_bytes() if cfg.ca_certs and cfg.cert_reqs == ssl.CERT_REQUIRED else None
    return Tls(Path(cfg.certfile).read_bytes(), Path(cfg.keyfile or cfg.certfile).read_bytes(), clients)
