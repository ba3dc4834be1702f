"""Real servers for tests: started as a user starts them, waited for, and ended by pid.

Clients say ``verify=False``: without it httpx reads the certificates of all authorities for each of them.
"""

import contextlib
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

PATIENCE = 60.0
STOP = 2.0
"""Seconds that a stop may take where no request is being answered."""


def free_port() -> int:
    """A port that nobody has, and that the kernel gives to no client (those begin at 32768) until a server takes it.

    By chance, since tests run side by side: two of them hardly ever take the same one.
    """
    while True:
        port = 15000 + secrets.randbelow(17000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def eventually(condition: Callable[[], Any], within: float = PATIENCE, every: float = 0.05) -> Any:
    """The first true value of ``condition``; fails the test when there is none in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not within {within} s: {condition}")


class Delays:
    """For how long processes could have run and had no CPU: on a busy machine that is most of the time.

    Linux tells it of the main thread of a process as long as the process is there, so a thread looks again and again.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._before = {pid: _delayed(pid) for pid in pids}
        self._last = dict(self._before)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Delays":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def of(self, pid: int) -> float:
        """Seconds."""
        return self._last[pid] - self._before[pid]

    def others(self, pid: int) -> list[int]:
        return [other for other in self._last if other != pid]

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for pid, last in self._last.items():
                self._last[pid] = max(last, _delayed(pid))


def _delayed(pid: int) -> float:
    with contextlib.suppress(OSError, IndexError):  # it has ended, or this Linux does not tell
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    return 0.0


class Server:
    """A server process, its log and a client for it."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, log: Path, scheme: str = "http", slow_stop: str = ""
    ) -> None:
        self.process = process
        self.port = port
        self.log_file = log
        self.slow_stop = slow_stop
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, verify=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def workers(self) -> list[int]:
        """Pids of the living workers, lowest first."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children()
            return sorted(child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE)
        return []

    def refuses(self) -> bool:
        """Whether a TCP connect is refused."""
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == errno.ECONNREFUSED

    def family(self) -> list[int]:
        """Pids of everything that the server has started and that still runs, orphans included."""
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    members.append(process.pid)
        return members

    def is_ready(self) -> bool:
        self.check_alive()
        try:
            return self.client.get("/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")

    def wait_ready(self, workers: int | None = None, within: float = PATIENCE) -> "Server":
        eventually(self.is_ready, within)
        if workers is not None:
            eventually(lambda: self.states().get("ready") == workers, within)
        return self

    def states(self) -> dict[str, int]:
        """Live workers by state, from the metrics."""
        return {
            line.split('"')[1]: int(float(line.rsplit(" ", 1)[1]))
            for line in self.metrics()
            if line.startswith("mpserve_workers{")
        }

    def metrics(self) -> list[str]:
        """The lines of `/metrics`, on a connection of its own: a kept-alive one may belong to a worker that was killed."""
        return httpx.get(f"{self.url}/metrics", timeout=PATIENCE, verify=False).text.splitlines()

    def metric(self, sample: str) -> float:
        """The value of one sample, named as it is exposed; 0 when it is not there."""
        for line in self.metrics():
            if line.startswith(f"{sample} "):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def predict(self, model: str, instances: Sequence[Any], **options: Any) -> httpx.Response:
        return self.client.post(f"/v1/models/{model}:predict", json={"instances": instances}, **options)

    def pids_answering(self, model: str, requests: int = 40) -> set[int]:
        """Which workers answer, as told by a model whose prediction is its pid; each request on a connection of its own."""
        body = json.dumps({"instances": [0]})
        return {
            httpx.post(f"{self.url}/v1/models/{model}:predict", content=body, timeout=PATIENCE, verify=False).json()[
                "predictions"
            ][0]
            for _ in range(requests)
        }

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_end(self, within: float = PATIENCE) -> int:
        return self.process.wait(within)

    def stop(self) -> int:
        """End it gracefully, in no more than ``STOP`` seconds unless ``slow_stop`` says why.

        The seconds for which the arbiter and the slowest worker could have run and had no CPU do not count.
        """
        begin = time.monotonic()
        with Delays([self.pid, *self.workers()]) as delays:
            status = self.end()
        seconds = (
            time.monotonic() - begin - delays.of(self.pid) - max(map(delays.of, delays.others(self.pid)), default=0.0)
        )
        assert seconds <= STOP or self.slow_stop, (
            f"the stop took {seconds:.1f} s, and slow_stop says no reason:\n{self.log}"
        )
        return status

    def end(self) -> int:
        """End it gracefully, however long that takes; kill what is left after that, by pid."""
        self.client.close()  # an idle connection would be waited for
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            for pid in self.family():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    port: int,
    env: dict[str, str] | None = None,
    scheme: str = "http",
    slow_stop: str = "",
    pass_fds: Sequence[int] = (),
) -> Iterator[Server]:
    """Run ``command`` in ``folder`` until the block is left; its output is in ``folder/server.log``.

    Fails if the stop takes long after a block that has passed. ``slow_stop`` says why it may.
    """
    log = folder / f"server-{port}.log"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MPSERVE_", "GUNICORN_"))}
    environment |= {"PYTHONUNBUFFERED": "1", "MPSERVE_HOST": "127.0.0.1", "MPSERVE_ENABLE_GRPC": "no"} | (env or {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a process group of its own, as a terminal would give it
            pass_fds=pass_fds,
        )
    server = Server(process, port, log, scheme, slow_stop)
    try:
        yield server
        server.stop()
    finally:
        server.end()


@contextlib.contextmanager
def serving(
    folder: Path,
    source: str,
    *flags: str,
    target: str = "model.py",
    env: dict[str, str] | None = None,
    scheme: str = "http",
    slow_stop: str = "",
) -> Iterator[Server]:
    """``mpserve serve`` of a file with this source, with these flags, on a free port."""
    port = free_port()
    (folder / target.partition(":")[0]).write_text(source)
    command = [sys.executable, "-m", "mpserve", "serve", target, f"--http_port={port}", *flags]
    with running(command, folder, port, env, scheme, slow_stop) as server:
        yield server
