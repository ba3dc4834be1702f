"""What was measured: one line of JSON each, behind one that says where, when and with which versions."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.peers import wrk
from benchmarks.peers.environments import versions
from benchmarks.peers.servers import EVERY, Server

TREE = Path(__file__).parents[2]


class Record(NamedTuple):
    """One measurement, or why there is none (``failure``). CPU time in seconds, PSS in MB (10^6 bytes)."""

    section: str
    server: str
    workload: str
    connections: int = 0
    batch: int = 0
    workers: int = 1
    round: int = 0
    requests: int = 0
    seconds: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    errors: int = 0
    cpu_s: float = 0.0
    pss_mb: float = 0.0
    failure: str = ""

    @property
    def cpu_ms(self) -> float:
        """CPU time per request, in milliseconds."""
        return 1000 * self.cpu_s / max(self.requests, 1)

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Results:
    """The records of a run, and the heading of each of its sections."""

    def __init__(self, headings: dict[str, dict[str, Any]], records: list[Record]) -> None:
        self.headings = headings
        self.records = records

    @classmethod
    def read(cls, path: Path) -> Results:
        """From a file, or none if there is none."""
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        headings = {row["section"]: row for row in rows if "machine" in row}
        return cls(headings, [Record(**row) for row in rows if "machine" not in row])

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        default = Record("", "", "")._asdict()
        rows = list(self.headings.values())
        for record in self.records:
            rows.append({name: value for name, value in record._asdict().items() if value != default[name]})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def without(self, section: str) -> Results:
        """All but what is about to be measured again."""
        headings = {name: heading for name, heading in self.headings.items() if name != section}
        return Results(headings, [record for record in self.records if record.section != section])

    def servers(self, section: str) -> list[str]:
        """Those measured, in the order of EVERY."""
        measured = {record.server for record in self.records if record.section == section and not record.failure}
        return [server.name for server in EVERY if server.name in measured]

    def select(self, section: str, **wanted: Any) -> list[Record]:
        """Measurements with these values, by round; failed ones are left out."""
        found = [r for r in self.records if r.section == section and not r.failure]
        return sorted((r for r in found if wanted.items() <= r._asdict().items()), key=lambda r: r.round)

    def value(self, measure: Callable[[Record], float], section: str, **wanted: Any) -> float | None:
        """The median over the rounds."""
        found = self.select(section, **wanted)
        return median(map(measure, found)) if found else None

    def ratio(self, section: str, of: dict[str, Any], to: dict[str, Any]) -> float | None:
        """CPU time per request of one over that of another: the median of what each round says."""
        found = ratios(self.select(section, **of), self.select(section, **to))
        return median(found) if found else None


def ratios(of: Iterable[Record], to: Iterable[Record]) -> list[float]:
    """Of the CPU times per request, in each round that both have."""
    others = {record.round: record.cpu_ms for record in to}
    return [record.cpu_ms / others[record.round] for record in of if others.get(record.round)]


def heading(section: str, chosen: Iterable[Server], rounds: int, seconds: int) -> dict[str, Any]:
    """Where and when a section is measured, and with which versions."""
    return {
        "section": section,
        "machine": machine(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "revision": revision(),
        "rounds": rounds,
        "seconds": seconds,
        "wrk": wrk.version(),
        "versions": {server.environment or "mpserve": versions(server.environment) for server in chosen},
    }


def machine() -> str:
    """Processor, CPUs, memory and kernel, in words."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.machine()
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return f"{name}, {len(models) or '?'} CPUs, {memory:.0f} GiB, Linux {platform.release()}"


def revision() -> str:
    """Of this tree, with a + if it has been changed since."""
    command = ["git", "-C", str(TREE), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
