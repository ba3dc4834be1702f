"""Records each HTTP request that was answered: its count by route and status, and its line in the access log."""

import logging
import time
from urllib.parse import quote

from mpserve.telemetry.logging import shown_caller
from mpserve.telemetry.metrics import metrics

access_logger = logging.getLogger("mpserve.access")


class RequestLog:
    """``access_log``: whether each request is logged in a line."""

    def __init__(self, access_log: bool) -> None:
        self.access_log = access_log
        self.answered = metrics().answered

    def record(
        self, route: str, status: int, start: float, client: object, method: str, path: str, caller: str | None = None
    ) -> None:
        """Record a request. ``route`` is a path template, ``start`` a ``time.perf_counter``. ``caller`` has a name or not."""
        self.answered(route)[status] += 1
        if self.access_log:
            host, port = client if isinstance(client, tuple) else ("-", 0)
            access_logger.info(
                '%s:%s%s "%s %s" %d %.1f ms', host, port, shown_caller(caller), method, quote(path, "/:"), status,
                (time.perf_counter() - start) * 1000,
            )  # fmt: skip
