"""A server's process tree: started, asked, its CPU time and memory read from /proc, and ended without a trace."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.servers import APPS, Server, Setup
from benchmarks.peers.workloads import Array, Workload, WrongAnswer

START_SECONDS, STOP_SECONDS, SETTLE_SECONDS = 120, 15, 60
LATER = (404, 503)
"""What servers answer while their model is loading."""

PORTS = itertools.count(20_000 + os.getpid() % 1_000 * 10)
"""Below those that the system gives to clients, so that no connection takes one before its server does; and apart from
those of another run, which may have looked for a free one at the same moment."""


class NotServing(Exception):
    """A server has ended, or does not answer in time; the message says which and why."""


class Process(NamedTuple):
    """A line of /proc/PID/stat. ``ticks`` of CPU time include those of children that have ended."""

    pid: int
    state: str
    parent: int
    session: int
    ticks: int


def processes() -> Iterator[Process]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks = sum(map(int, fields[11:15]))
                yield Process(int(folder.name), fields[0], int(fields[1]), int(fields[3]), ticks)


def family(leader: int) -> list[Process]:
    """What belongs to a session leader: its session, and descendants that have begun one of their own."""
    found: dict[int, Process] = {}
    everybody = list(processes())
    while True:
        more = [p for p in everybody if p.pid not in found and (p.session == leader or p.parent in found)]
        if not more:
            return [process for process in found.values() if process.state != "Z"]
        found.update((process.pid, process) for process in more)


def pss_megabytes(pids: list[int]) -> float:
    """In MB (10^6 bytes). A page that n processes share counts 1/n in each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024 / 1e6


def free_port() -> int:
    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Running:
    """A server that has been started, on the given CPUs. To be closed, whatever happens."""

    def __init__(
        self, server: Server, cpus: set[int], environment: Mapping[str, str] | None = None, **setup: Any
    ) -> None:
        self.server = server
        self.folder = tempfile.TemporaryDirectory(prefix="mpserve-bench-")
        instance = Path(self.folder.name, "served")
        instance.mkdir()
        self.setup = Setup(free_port(), free_port(), free_port(), str(instance), **setup)
        self.log = Path(self.folder.name, "log")
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, sorted(cpus))), *server.command(self.setup)],
                cwd=APPS,
                env=inherited | self.setup.environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def url(self, workload: Workload) -> str:
        return f"http://127.0.0.1:{self.setup.port}{self.server.path(workload)}"

    def ask(self, workload: Workload, x: Array | None = None) -> None:
        """Send one request and check what comes back.

        Raises:
            NotServing: no answer, or that there is no such model, or not yet.
            WrongAnswer: another answer than the model's, or an error.
        """
        x = workload.x if x is None else x
        body, headers = workload.body(x)
        connection = http.client.HTTPConnection("127.0.0.1", self.setup.port, timeout=60)
        try:
            connection.request("POST", self.server.path(workload) or "", body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NotServing(f"{self.server.name}: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            is_early = response.status in LATER or b"not ready" in answer  # MLServer says so with 400
            failure = NotServing if is_early else WrongAnswer
            raise failure(f"{self.server.name} answered {response.status}: {answer[:300]!r}")
        workload.check(x, {name.lower(): value for name, value in response.headers.items()}, answer)

    def wait_until_ready(self, workload: Workload) -> None:
        """Until a request is answered rightly.

        Raises:
            NotServing: it ended, or has not answered in time.
            WrongAnswer: it answers with something else.
        """
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.process.poll() is not None:
                raise NotServing(f"{self.server.name} ended with {self.process.returncode}: {self.last_words()}")
            try:
                return self.ask(workload)
            except NotServing as error:
                if time.monotonic() > deadline:
                    raise NotServing(f"{error}: {self.last_words()}") from error
            time.sleep(0.1)

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:].strip()

    def pids(self) -> list[int]:
        return [process.pid for process in family(self.process.pid)]

    def cpu_seconds(self) -> float:
        """CPU time of the whole tree so far, in user and in kernel mode."""
        return sum(process.ticks for process in family(self.process.pid)) / os.sysconf("SC_CLK_TCK")

    def settled_pss(self) -> float:
        """PSS of the tree in MB, once two readings a second apart differ by less than 1 %: all workers have loaded."""
        before = pss_megabytes(self.pids())
        for _ in range(SETTLE_SECONDS):
            time.sleep(1)
            now = pss_megabytes(self.pids())
            if abs(now - before) < 0.01 * before:
                return now
            before = now
        raise NotServing(f"{self.server.name}: its memory has not settled")

    def close(self) -> None:
        """End all of its processes: politely at first."""
        pids = self.pids()  # now, since orphans that have left the session cannot be found later
        self.process.terminate()
        if not _within(STOP_SECONDS, lambda: self.process.poll() is not None and not any(map(_is_alive, pids))):
            for pid in filter(_is_alive, {*pids, *self.pids()}):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met
