"""How soon /v2/health/live is answered while predict runs for 5 s on both workers and 32 clients wait.

    python benchmarks/liveness.py

The model sleeps, which releases the GIL, one request at a time in each worker. Each probe opens a connection of its own, as
the kubelet does, and is timed from the connect to the last byte. Exits with 1 when the 99th percentile is above 20 ms, or
when a client gets no answer in the end.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKERS, CLIENTS, SECONDS = 2, 32, 5
LIMIT_MS = 20.0
PAUSE = 0.005
"""Seconds between two probes."""
MODEL = f"""
import os, time
from pathlib import Path
from mpserve import Model

class Slow(Model):
    name = "m"
    def predict(self, payload, headers=None):
        Path(f"begun-{{os.getpid()}}").touch()
        if not Path("over").exists():
            time.sleep({SECONDS})
        return {{"predictions": [0]}}
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def ask(port: int, method: str, path: str, body: str | None = None) -> int:
    """The status of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def ready_workers(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        for line in response.read().decode().splitlines():
            if line.startswith('mpserve_workers{state="ready"}'):
                return int(float(line.split()[1]))
    return 0


def wait_until(ready: Callable[[], bool], server: "subprocess.Popen[bytes]") -> None:
    for _ in range(3000):
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        try:
            if ready():
                return
        except OSError:  # it does not listen yet
            pass
        time.sleep(0.02)
    sys.exit("the server did not come so far within a minute")


def probe(port: int) -> list[float]:
    """Milliseconds of each probe, in ascending order, for nearly as long as one predict takes."""
    times = []
    end = time.perf_counter() + SECONDS - 0.5
    while (start := time.perf_counter()) < end:
        if ask(port, "GET", "/v2/health/live") != 200:
            sys.exit("a probe was not answered with 200")
        times.append((time.perf_counter() - start) * 1e3)
        time.sleep(PAUSE)
    return sorted(times)


def measure(port: int, folder: Path, server: "subprocess.Popen[bytes]") -> bool:
    wait_until(lambda: ready_workers(port) == WORKERS, server)
    with ThreadPoolExecutor(CLIENTS) as clients:
        ask_one = ("POST", "/v1/models/m:predict", '{"instances": [0]}')
        waiting = [clients.submit(ask, port, *ask_one) for _ in range(CLIENTS)]
        try:
            wait_until(lambda: len(list(folder.glob("begun-*"))) == WORKERS, server)
            times = probe(port)
            still = sum(not answer.done() for answer in waiting)
        finally:
            (folder / "over").touch()
        answered = sum(answer.result() == 200 for answer in waiting)
    p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
    print(
        f"{len(times)} probes while {still} clients waited: p50 {p50:.1f} ms, p99 {p99:.1f} ms (at most {LIMIT_MS:.0f}),"
        f" max {times[-1]:.1f} ms; {answered} clients were answered"
    )
    return p99 <= LIMIT_MS and still == answered == CLIENTS


def main() -> None:
    environment = os.environ | {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_ENABLE_GRPC": "no", "MPSERVE_LOG_LEVEL": "error"}
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "model.py").write_text(MODEL)
        command = [sys.executable, "-m", "mpserve", "serve", "model.py", f"--http_port={port}", f"--workers={WORKERS}"]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        try:
            kept = measure(port, folder, server)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
