"""The statistics of the server's models (Triton, ``extension_statistics.md``): each worker counts, and any worker answers.

Triton counts in one process. Here the sum over all slots of the shared counters is the server's total, which includes the
counts of workers that have ended. A reloaded model begins at zero, as Triton's does. Knows no front end.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any, Protocol

from mpserve.serving.execution import model_counters
from mpserve.serving.execution.model_counters import ModelCounters
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.repository.core import ServerCore
from mpserve.state.counters import CELLS
from mpserve.telemetry.metrics import metrics

SPANS = {
    "success": model_counters.SUCCESS_NS,
    "queue": model_counters.QUEUE_NS,
    "compute_input": model_counters.INPUT_NS,
    "compute_infer": model_counters.INFER_NS,
    "compute_output": model_counters.OUTPUT_NS,
}
"""The durations that each answered request adds to, with their cells."""

NONE = {"count": 0, "ns": 0}


def counters_of(core: ServerCore, instance: ModelInstance) -> ModelCounters:
    """Claim the counters of a model in this worker, until the desired state changes; ``instance`` keeps them."""
    desired = core.desired
    live = {spec.revision for spec in (*desired.models.values(), *desired.candidates.values())}
    revision = desired.models[instance.model.name].revision
    cells = core.board.counters.claim(core.row.slot, _key(core, instance), revision, live)
    soon = asyncio.get_running_loop().call_soon
    instance.counters = ModelCounters(cells, desired, instance.observed, soon)
    return instance.counters


class Ended(Protocol):
    """A request that was not answered."""

    core: ServerCore
    head: Any
    instance: ModelInstance


def count_ended(request: Ended, status: str) -> None:
    """Count a request that was not answered in the metrics of its model, unless no such model is served."""
    instance = getattr(request, "instance", None)
    if instance is not None:
        metrics().count_ended(instance.model.name, instance.model.version, status)
    elif request.head.model in request.core.names:  # it could not be loaded, or has no such version
        metrics().count_ended(request.head.model, "", status)


def _key(core: ServerCore, instance: ModelInstance) -> int:
    """The key of the counters of this revision of a model, the same in every worker."""
    model = instance.model
    identity = repr((model.name, model.version, core.desired.models[model.name].revision))
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) | 1  # odd: never the key of a free block


class Statistics:
    """The counts of one server's models."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def present(self, instance: ModelInstance) -> tuple[int, int]:
        """The requests to a version of a model that are in flight, and that wait, in all workers, as of their last tick."""
        board = self.core.board
        blocks = board.counters.of((row.slot for row in board.live()), _key(self.core, instance))
        return sum(block[model_counters.IN_FLIGHT] for block in blocks), sum(
            block[model_counters.WAITING] for block in blocks
        )

    def told(self, name: str = "", version: str | None = None) -> list[dict[str, Any]]:
        """``model_stats`` of one version of a model, of all its versions, or, without a name, of all models.
        Raises MPServeError as ``ServerCore.find``.
        """
        return [self._of(instance) for instance in self._named(name, version)]

    def _named(self, name: str, version: str | None) -> Iterable[ModelInstance]:
        if not name:
            return chain.from_iterable(self.core.models.values())
        instance = self.core.find(name, version)
        return self.core.models[name] if version is None else [instance]

    def _of(self, instance: ModelInstance) -> dict[str, Any]:
        board = self.core.board
        if instance.counters is not None:
            instance.counters.flush()
        blocks = board.counters.of((row.slot for row in board.used()), _key(self.core, instance)) or [[0] * CELLS]
        total = [sum(cells) for cells in zip(*blocks, strict=True)]
        answered = total[model_counters.SUCCESSES]
        return {
            "name": instance.model.name,
            "version": instance.model.version,
            "last_inference": max(block[model_counters.LAST] for block in blocks) // 1_000_000,
            "inference_count": total[model_counters.ROWS],
            "execution_count": total[model_counters.EXECUTIONS],
            "inference_stats": {
                **{name: {"count": answered, "ns": total[cell]} for name, cell in SPANS.items()},
                "fail": {"count": total[model_counters.FAILURES], "ns": total[model_counters.FAILURE_NS]},
                "cache_hit": NONE,
                "cache_miss": NONE,
            },
            "batch_stats": [],
            "memory_usage": [],
            "response_stats": {},
        }
