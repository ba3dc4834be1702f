"""``grpc.health.v1.Health``: what Kubernetes' gRPC probes and load balancers ask.

SERVING is what ``ServerReady`` and V2's ``/v2/health/ready`` mean by ready. The statuses are asked for anew each time;
the servicer in grpcio-health-checking has to be told of each change, and keeps its watchers open for ever.

Source: grpc/doc/health-checking.md.
"""

import asyncio
import contextlib
from collections.abc import Container
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpserve.serving.repository.core import ServerCore

WATCH_EVERY = 1.0
"""Seconds after which a watcher learns of a change at the latest; of a drain it learns at once."""

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):
    """The health of the server as a whole (""), which is that of each of its ``services``."""

    def __init__(self, core: ServerCore, services: Container[str]) -> None:
        self.core = core
        self.services = services
        self._retired = False
        self._ended = asyncio.Event()

    def retire(self) -> None:
        """Say NOT_SERVING from now on."""
        self._retired = True

    def end(self) -> None:
        """Tell all watchers NOT_SERVING, and let them go."""
        self._retired = True
        self._ended.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        told = None
        while True:
            ended = self._ended.is_set()
            status = self._status(request.service) or health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
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
