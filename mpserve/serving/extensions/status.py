"""The state of the server as a person wants to see it: workers, models, figures and the last errors, of all workers together.

Figures are totals, so whoever asks twice makes the rates. Nothing is kept here. Knows no front end.
"""

import time
from collections.abc import Callable
from typing import Any

from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import LIVING, Ending, Row, State
from mpserve.telemetry import processes
from mpserve.telemetry.last_errors import last_errors
from mpserve.telemetry.metrics import metrics, request_durations
from mpserve.version import VERSION

Document = dict[str, Any]

SILENCE = 2000
"""Milliseconds without a tick after which a worker's event loop counts as blocked. It ticks ten times a second."""

ENDINGS = {
    Ending.NONE: "",
    Ending.DIED: "it was killed, or it crashed",
    Ending.STUCK: "a call of a model did not return",
    Ending.ACCELERATOR: "its accelerator could not be used any more",
}
notices: list[Callable[[], str]] = []
"""Each tells what else needs attention, or an empty text: ``mpserve dev`` tells why the new code is not served."""

PRIVATE: Document = {"manages": False, "errors": [], "notices": []}
"""What a client sees that may not manage the server. Errors are lines of the log."""


class Status:
    """The state of one server."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.statistics = Statistics(core)

    async def told(self) -> Document:
        """Everything, for a client that may manage the server."""
        core = self.core
        metrics().flush()
        durations = await core.offload(request_durations)
        return {
            "version": VERSION,
            "time": time.time(),
            "ready": core.is_ready(),
            "manages": True,
            "has_docs": core.settings.enable_docs_url,
            "workers": [self._worker(row) for row in self._rows()],
            "models": self._models(durations),
            "errors": last_errors(core.board),
            "notices": [text for tell in notices if (text := tell())],
        }

    def _rows(self) -> list[Row]:
        """The rows of the living workers. If too few live, those of the youngest dead ones too, which have no successor yet."""
        used = list(self.core.board.used())
        live = [row for row in used if row.is_live()]
        missing = max(self.core.board.workers_wanted - len(live), 0)
        dead = sorted((row for row in used if row not in live), key=lambda row: -row.age)
        return sorted(live + dead[:missing], key=lambda row: row.slot)

    def _worker(self, row: Row) -> Document:
        is_live = row.is_live()
        process = processes.look(row.pid) if is_live and row.pid else None
        return {
            "slot": row.slot,
            "pid": row.pid,
            "state": State(row.state).name.lower() if is_live else "dead",
            "trouble": self._trouble(row, is_live),
            "device": f"cuda:{row.accelerator - 1}" if row.accelerator else "cpu",
            "memory": process.resident if process else 0,
            "in_flight": row.in_flight if is_live else 0,
            "waiting": row.waiting if is_live else 0,
            "connections": row.connections if is_live else 0,
            "restarts": row.restarts,
            "last_restart": ENDINGS[Ending(row.last_ending)],
        }

    def _trouble(self, row: Row, is_live: bool) -> str:
        """What ails this worker, or an empty text."""
        if not is_live:
            return "it is gone, and has no successor yet" if row.state in LIVING else "it has ended"
        if row.state in (State.LOADING, State.OPENING):
            return f"the last {row.attempts - 1} in this slot failed; it loads again" if row.attempts > 1 else ""
        silence = time.monotonic_ns() // 1_000_000 - row.ticked
        if row.ticked and silence > SILENCE:
            return f"its event loop has not run for more than {max(silence // 10_000 * 10, SILENCE // 1000)} s"
        missing = [name for name, spec in self.core.desired.models.items() if not row.models >> spec.bit & 1]
        if row.state == State.READY and missing and not _is_behind(row, self.core):
            return f"it cannot answer for {', '.join(missing)}"
        return ""

    def _models(self, durations: dict[str, dict[str, float]]) -> list[Document]:
        core = self.core
        live = [row for row in core.board.live() if row.state == State.READY]
        here = {name: self.statistics.told(name) for name in core.models if name in core.desired.models}
        return [
            {
                "name": name,
                "versions": core.versions(name) if name in here else [],
                "workers": sum(row.models >> spec.bit & 1 for row in live),
                "waiting": sum(self.statistics.present(instance)[1] for instance in core.models.get(name, ())),
                "durations": durations.get(name, {}),
                "statistics": [_figures(told) for told in here.get(name, [])],
            }
            for name, spec in core.desired.models.items()
        ]


def _is_behind(row: Row, core: ServerCore) -> bool:
    """Whether the worker has yet to follow a change of models."""
    return row.generation < core.board.generation


def _figures(told: Document) -> Document:
    """The totals of one version of a model; times in seconds."""
    spans = told["inference_stats"]
    return {
        "version": told["version"],
        "answered": spans["success"]["count"],
        "failed": spans["fail"]["count"],
        "rows": told["inference_count"],
        "executions": told["execution_count"],
        "queue_seconds": spans["queue"]["ns"] / 1e9,
        "seconds": spans["success"]["ns"] / 1e9,
    }
