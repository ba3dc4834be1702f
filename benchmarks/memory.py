"""What more workers cost in memory and at the start: 200 MB of weights preloaded, 1 worker against 4, in the same run.

    python benchmarks/memory.py [MEGABYTES]

Memory is PSS of the whole process tree (/proc/PID/smaps_rollup), in which a page shared by n processes counts 1/n in each,
after 10,000 requests, which have read all weights. The start is the time until every worker is ready, the shortest of three.
Exits with 1 when 4 workers need more than 1.25 times the memory of 1 (1.4 times with gRPC), or more than 1.3 times its time.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

REQUESTS = 10_000
CONNECTIONS = 16
MEMORY_LIMIT = {"no": 1.25, "yes": 1.4}
"""By whether gRPC is served."""
START_LIMIT = 1.3
MODEL = """
import numpy as np
from mpserve import Model

class Heavy(Model):
    name = "heavy"
    def preload(self):
        self.weights = np.random.default_rng(0).random({megabytes} * 2**20 // 8)
    def predict(self, payload, headers=None):
        return {{"predictions": [float(self.weights[payload["instances"][0] :: 4096].sum())]}}
"""


class Cost(NamedTuple):
    """Of a server: seconds until it was ready, and PSS in MB (10^6 bytes)."""

    seconds: float
    megabytes: float


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def pss_megabytes(pid: int) -> float:
    """PSS of a process and its children, in MB (10^6 bytes)."""
    total = 0
    for each in (pid, *children(pid)):
        for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total / 1e6


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_ready(port: int, workers: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(12_000):
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/metrics")
            if f'mpserve_workers{{state="ready"}} {workers}.0' in connection.getresponse().read().decode():
                return
        except OSError:
            pass
        time.sleep(0.01)
    sys.exit("the server was not ready within two minutes")


def ask(port: int, requests: int) -> None:
    """So many requests over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for number in range(requests):
        connection.request("POST", "/v1/models/heavy:predict", json.dumps({"instances": [number % 4096]}))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body


def measure(workers: int, megabytes: int, grpc: str) -> Cost:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.py")
        model.write_text(MODEL.format(megabytes=megabytes))
        flags = [f"--http_port={port}", f"--grpc_port={free_port()}", f"--workers={workers}", f"--enable_grpc={grpc}"]
        environment = os.environ | {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_LOG_LEVEL": "warning"}
        start = time.monotonic()
        server = subprocess.Popen([sys.executable, "-m", "mpserve", "serve", str(model), *flags], env=environment)
        try:
            wait_until_ready(port, workers, server)
            seconds = time.monotonic() - start
            with ThreadPoolExecutor(CONNECTIONS) as clients:
                list(clients.map(ask, [port] * CONNECTIONS, [REQUESTS // CONNECTIONS] * CONNECTIONS))
            return Cost(seconds, pss_megabytes(server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(
        f"{megabytes} MB of weights preloaded; PSS of the whole tree after {REQUESTS} requests, and seconds until ready"
    )
    within = True
    for grpc in ("no", "yes") if find_spec("grpc") else ("no",):
        rounds = [(measure(1, megabytes, grpc), measure(4, megabytes, grpc)) for _ in range(3)]
        one, four = (
            Cost(min(cost.seconds for cost in costs), costs[-1].megabytes) for costs in zip(*rounds, strict=True)
        )
        memory, start = four.megabytes / one.megabytes, four.seconds / one.seconds
        print(f"  {'with' if grpc == 'yes' else 'without'} gRPC")
        print(f"    1 worker   {one.megabytes:5.0f} MB  {one.seconds:5.2f} s")
        print(f"    4 workers  {four.megabytes:5.0f} MB  {four.seconds:5.2f} s", end="")
        print(f"   {memory:.2f} times (at most {MEMORY_LIMIT[grpc]})  {start:.2f} times (at most {START_LIMIT})")
        within = within and memory <= MEMORY_LIMIT[grpc] and start <= START_LIMIT
    sys.exit(0 if within else 1)


if __name__ == "__main__":
    main()
