"""The statistics of the server's models (Triton, ``extension_statistics.md``): counted by each worker, told for all.

Triton counts in one process. Here the sum over all slots of the shared counters is the server's, whichever worker is asked,
and includes what workers counted that are gone. A model that is loaded anew begins at zero, as Triton's does. It knows no
front end: what it tells has Triton's fields, for JSON and protobuf alike.
"""

import asyncio
import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

from mpserve.counters import CELLS
from mpserve.serving import tally
from mpserve.serving.core import ServerCore
from mpserve.serving.served import Served
from mpserve.serving.tally import Tally
from mpserve.serving.tensors import TensorModel

SPANS = {
    "success": tally.SUCCESS_NS,
    "queue": tally.QUEUE_NS,
    "compute_input": tally.INPUT_NS,
    "compute_infer": tally.INFER_NS,
    "compute_output": tally.OUTPUT_NS,
}
"""The durations that each answered request adds to, with their cells."""

NONE = {"count": 0, "ns": 0}


class Statistics:
    """The counts of one server's models."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def tally(self, served: Served) -> Tally:
        """Where this worker counts the requests to a model from now on, until the wish changes; ``served`` keeps it."""
        core, model = self.core, served.model
        wish = core.wish
        live = {wanted.revision for wanted in (*wish.models.values(), *wish.trials.values())}
        revision = wish.models[model.name].revision
        cells = core.board.counters.claim(core.row.slot, self._key(served), revision, live)
        batched = isinstance(model, TensorModel) and all(list(tensor.shape[:1]) == [-1] for tensor in model.inputs)
        served.tally = Tally(cells, wish, batched, asyncio.get_running_loop().call_soon)
        return served.tally

    def _key(self, served: Served) -> int:
        """What the counts of this revision of a model are known by, in every worker."""
        model = served.model
        told = repr((model.name, model.version, self.core.wish.models[model.name].revision))
        digest = hashlib.blake2b(told.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True) | 1  # odd: none of the keys that nobody has

    def told(self, name: str = "", version: str | None = None) -> list[dict[str, Any]]:
        """``model_stats`` of one version of a model, of all its versions, or without a name of all that is served.

        Raises:
            MPServeError: as ``ServerCore.find``.
        """
        return [self._of(served) for served in self._named(name, version)]

    def _named(self, name: str, version: str | None) -> Iterable[Served]:
        if not name:
            return chain.from_iterable(self.core.served.values())
        served = self.core.find(name, version)
        return self.core.served[name] if version is None else [served]

    def _of(self, served: Served) -> dict[str, Any]:
        board = self.core.board
        if served.tally is not None:
            served.tally.flush()
        blocks = board.counters.of((row.slot for row in board.used()), self._key(served)) or [[0] * CELLS]
        total = [sum(cells) for cells in zip(*blocks, strict=True)]
        answered = total[tally.SUCCESSES]
        return {
            "name": served.model.name,
            "version": served.model.version,
            "last_inference": max(block[tally.LAST] for block in blocks) // 1_000_000,
            "inference_count": total[tally.ROWS],
            "execution_count": total[tally.EXECUTIONS],
            "inference_stats": {
                **{name: {"count": answered, "ns": total[cell]} for name, cell in SPANS.items()},
                "fail": {"count": total[tally.FAILURES], "ns": total[tally.FAILURE_NS]},
                "cache_hit": NONE,
                "cache_miss": NONE,
            },
            "batch_stats": [],
            "memory_usage": [],
            "response_stats": {},
        }
