"""What the kernel tells of the worker processes, read when metrics are asked for: memory, time of the CPU, descriptors, start.

The names are those of prometheus_client's ``ProcessCollector``, which knows its own process only, with the label ``slot``.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

_UTIME, _STIME, _STARTTIME, _RSS = (
    11,
    12,
    19,
    21,
)  # of the fields of /proc/PID/stat, after the name of the program (proc(5))


class Process(NamedTuple):
    """A process: bytes in memory, seconds of the CPU, open descriptors, and its start in seconds since 1970."""

    resident: int
    cpu: float
    descriptors: int
    start: float


def look(pid: int) -> Process | None:
    """The process; None if it has ended, or belongs to another user."""
    folder = Path("/proc", str(pid))
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        descriptors = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    cpu = (int(fields[_UTIME]) + int(fields[_STIME])) / TICKS
    return Process(int(fields[_RSS]) * PAGE, cpu, descriptors, _boot() + int(fields[_STARTTIME]) / TICKS)


def _boot() -> float:
    """When the machine was started, in seconds since 1970."""
    lines = Path("/proc/stat").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("btime "))


def collect(pids: Mapping[int, int]) -> Iterator[Metric]:
    """The metrics of the processes with these pids, by slot."""
    found = {slot: process for slot, pid in pids.items() if (process := look(pid)) is not None}
    labels = ["slot"]
    resident = GaugeMetricFamily(
        "mpserve_worker_resident_memory_bytes",
        "Memory of a worker (RSS), including the memory that it shares.",
        labels=labels,
    )
    cpu = CounterMetricFamily("mpserve_worker_cpu_seconds", "Time of the CPU that a worker has used.", labels=labels)
    descriptors = GaugeMetricFamily("mpserve_worker_open_fds", "Open file descriptors of a worker.", labels=labels)
    start = GaugeMetricFamily(
        "mpserve_worker_start_time_seconds", "Start of a worker, in seconds since 1970.", labels=labels
    )
    for slot, process in found.items():
        label = [str(slot)]
        resident.add_metric(label, process.resident)
        cpu.add_metric(label, process.cpu)
        descriptors.add_metric(label, process.descriptors)
        start.add_metric(label, process.start)
    yield from (resident, cpu, descriptors, start)
