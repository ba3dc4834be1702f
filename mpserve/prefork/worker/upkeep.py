"""The parts of a worker's tick, kept apart: a part that fails does not hinder the others, and does not fill the log.

It knows none of the parts.
"""

import logging
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

QUIET = 10.0
"""Seconds for which a part must have worked before its next failure is logged again."""


class Upkeep:
    """Runs ``parts``, which are given by name, in their order, whenever ``run`` is called."""

    def __init__(self, parts: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.monotonic) -> None:
        self._parts = parts
        self._clock = clock
        self._failed: dict[str, float] = {}
        """The moment of each part's last failure."""

    def run(self) -> None:
        for name, part in self._parts.items():
            try:
                part()
            except Exception:
                self._note(name)

    def _note(self, name: str) -> None:
        now = self._clock()
        if now - self._failed.get(name, -QUIET) >= QUIET:
            logger.exception(
                "%s failed. The worker goes on and tries it again; only the first failure is logged.", name
            )
        self._failed[name] = now
