"""Runs the parts of a worker's tick. A part that fails does not hinder the others, and does not fill the log."""

import logging
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

QUIET = 10.0  # seconds without a failure after which the next failure of a part is logged again


class Upkeep:
    """Runs ``parts``, given by name, in their order, whenever ``run`` is called."""

    def __init__(self, parts: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._last_failure: dict[str, float] = {}

    def run(self) -> None:
        for name, part in self._parts.items():
            try:
                part()
            except Exception:
                now = self._clock()
                if now - self._last_failure.get(name, -QUIET) >= QUIET:
                    logger.exception(
                        "%s failed. The worker goes on and tries it again; only the first failure is logged.", name
                    )
                self._last_failure[name] = now
