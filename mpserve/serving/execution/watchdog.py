"""A call of a model that does not come back: found by a look at its threads now and then, which costs a request nothing.

A thread cannot be ended from outside, so whoever finds one stuck can only see to it that the process is replaced.
"""

from mpserve.serving.execution.executor import Executor


class Watchdog:
    """Watches the threads of a model. ``patience``: seconds that one call may take."""

    def __init__(self, executor: Executor, patience: float) -> None:
        self.patience = patience
        self._executor = executor
        self._seen = [(0, 0.0)] * executor.threads  # of each thread its steps, and when there were first so many

    def look(self, now: float) -> list[int]:
        """The threads that are stuck in a call at ``now``, on a monotonic clock. To be called often."""
        stuck = []
        for number, steps in enumerate(self._executor.steps):
            known, since = self._seen[number]
            if steps != known:
                self._seen[number] = steps, now
            elif steps % 2 and now - since > self.patience:
                stuck.append(number)
        return stuck

    def stacks(self, stuck: list[int]) -> str:
        return "\n".join(self._executor.stack(number) for number in stuck)
