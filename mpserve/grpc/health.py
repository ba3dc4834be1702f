"""``grpc.health.v1.Health`` for the gRPC probes of Kubernetes and load balancers. Source: grpc/doc/health-checking.md.

SERVING means ready as in ``ServerReady`` and ``/v2/health/ready``. The servicer of grpcio-health-checking is not used, since it
must be told of each change and never ends its watchers.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpserve.errors import shown
from mpserve.serving.repository.core import ServerCore

WATCH_EVERY = 1.0  # maximum seconds until a watcher learns of a change. A watcher learns of a drain at once.

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """The health of the server (""), and of each of its ``services``, which is the same."""

    def __init__(self, core: ServerCore, services: Sequence[str]) -> None:
        self.core = core
        self.services = services
        self._retired = False
        self._ended = asyncio.Event()

    def retire(self) -> None:
        """Answer NOT_SERVING from now on."""
        self._retired = True

    def end(self) -> None:
        """Answer NOT_SERVING to all watchers, and end their calls."""
        self._retired = True
        self._ended.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {shown(request.service)!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Context) -> Any:
        """The health of each service. Releases of grpcio-health-checking that do not know this method do not ask for it."""
        status = health_pb2.HealthCheckResponse(status=self._status(""))
        answer: Any = health_pb2.HealthListResponse  # type: ignore[attr-defined]  # its stubs are older
        return answer(statuses=dict.fromkeys(("", *self.services), status))

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        last = None
        while True:
            ended = self._ended.is_set()
            status = self._status(request.service) or health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if ended:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended.wait(), WATCH_EVERY)

    def _status(self, service: str) -> int | None:
        if service and service not in self.services:
            return None
        if self._retired or not self.core.is_ready():
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVING
