"""The state that all HTTP connections of one worker share. The module knows no protocol."""

import asyncio
import heapq
import math
import time
from email.utils import formatdate
from typing import Any, Protocol

from mpserve.http.server.heads import Head, Heads
from mpserve.http.server.interface import ASGIApp, DirectRoutes, Limits, Rebalancer
from mpserve.http.server.response_head import usual_head
from mpserve.state.scoreboard import Row


class OpenConnection(Protocol):
    """The part of ``Connection`` that the server uses."""

    transport: asyncio.Transport
    last_head: Head | None

    @property
    def unanswered(self) -> int: ...
    @property
    def idle_since(self) -> float: ...
    def expire(self, now: float) -> None: ...
    def retire(self, at_once: bool) -> None: ...


class RunningCycle(Protocol):
    """The part of ``Cycle`` that the server uses."""

    @property
    def is_disconnected(self) -> bool: ...


class HttpServer:
    """The HTTP server of one worker. Each request gets a copy of ``app_state``, the state of the application's lifespan."""

    def __init__(
        self,
        app: ASGIApp,
        app_state: dict[str, Any],
        routes: DirectRoutes | None,
        limits: Limits,
        row: Row,
        rebalancer: Rebalancer,
    ) -> None:
        self.app = app
        self.app_state = app_state
        self.routes = routes
        self.limits = limits
        self.row = row
        self.rebalancer = rebalancer
        self.heads = Heads()
        self.connections: set[OpenConnection] = set()
        self.cycles: set[RunningCycle] = set()  # the running calls of the application. Each removes itself at its end.
        self.total_requests = 0  # number of requests that were answered
        self.server_fields = self.usual_head = b""
        self.set_date(time.time())

    def set_date(self, now: float) -> None:
        """Set the time in answers (``time.time``)."""
        self.server_fields = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        self.usual_head = usual_head(self.server_fields)

    def forget_heads(self) -> None:
        """Match each head anew, since what the same bytes mean has changed."""
        self.heads.clear()
        for connection in self.connections:
            connection.last_head = None

    def expire(self, now: float) -> None:
        """Close connections that are late at ``now`` (``loop.time``). Call this often, since connections have no timers."""
        for connection in list(self.connections):
            connection.expire(now)

    def retire(self, at_once: bool) -> None:
        """Close each connection after its next answer. ``at_once``: close now, if nothing is to be answered."""
        for connection in list(self.connections):
            connection.retire(at_once)

    def make_room(self) -> None:
        """Close the connections that have been idle for longest: a hundredth of all, and at least one, if one is idle."""
        number = max(len(self.connections) // 100, 1)
        for connection in heapq.nsmallest(number, self.connections, key=lambda connection: connection.idle_since):
            if connection.idle_since < math.inf:
                connection.transport.abort()  # without the long goodbye of TLS

    @property
    def is_idle(self) -> bool:
        """Whether no connection is open and no call of the application runs."""
        return not (self.connections or self.cycles)

    @property
    def unanswered(self) -> int:
        """Number of requests that are not answered, and of calls whose client is gone."""
        abandoned = sum(cycle.is_disconnected for cycle in self.cycles)
        return abandoned + sum(connection.unanswered for connection in self.connections)
