"""What all HTTP connections of one worker share. The module knows no protocol: it keeps the lists and the settings."""

import time
from email.utils import formatdate
from typing import Any, Protocol

from mpserve.http.server.heads import Heads
from mpserve.http.server.limits import Limits
from mpserve.http.server.response_head import usual_head
from mpserve.http.server.routes import ASGIApp, DirectRoutes, Rebalancer
from mpserve.state.scoreboard import Row


class OpenConnection(Protocol):
    """A connection, as the server looks after it."""

    @property
    def unanswered(self) -> int:
        """Requests that have come and are not answered."""

    def expire(self, now: float) -> None:
        """Act on what is late at ``now``."""

    def retire(self, at_once: bool) -> None:
        """Close after the next answer. ``at_once``: close now, if there is nothing to answer."""


class RunningCycle(Protocol):
    """A call of the ASGI application, as the server counts it."""

    @property
    def is_disconnected(self) -> bool:
        """Whether the client is gone."""


class HttpServer:
    """The HTTP server of one worker.

    Args:
        app: the ASGI application.
        app_state: the state of its lifespan, of which each request gets a copy.
        routes: the direct routes, if there are any.
        limits: the limits of a request.
        row: the worker's row of the scoreboard, which counts connections.
        rebalancer: decides which connections are given up.
    """

    def __init__(
        self,
        app: ASGIApp,
        app_state: dict[str, Any],
        routes: DirectRoutes[Any] | None,
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
        self.cycles: set[RunningCycle] = set()
        """The calls of the application that run. Each takes itself out at its end."""
        self.total_requests = 0
        """Requests that were answered."""
        self.server_fields = self.usual_head = b""
        self.set_date(time.time())

    def set_date(self, now: float) -> None:
        """Write this time (``time.time``) into the answers from now on."""
        self.server_fields = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
        self.usual_head = usual_head(self.server_fields)

    def expire(self, now: float) -> None:
        """Act on what is late at ``now`` (``loop.time``). Call this often: there are no timers."""
        for connection in list(self.connections):
            connection.expire(now)

    def retire(self, at_once: bool) -> None:
        """Close each connection after its next answer. ``at_once``: close those that have nothing to answer."""
        for connection in list(self.connections):
            connection.retire(at_once)

    @property
    def is_idle(self) -> bool:
        """Whether no connection is open and no call of the application runs."""
        return not (self.connections or self.cycles)

    @property
    def unanswered(self) -> int:
        """Requests that are not answered, and calls of the application whose client is gone."""
        abandoned = sum(cycle.is_disconnected for cycle in self.cycles)
        return abandoned + sum(connection.unanswered for connection in self.connections)
