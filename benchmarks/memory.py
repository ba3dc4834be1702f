"""How much memory more workers cost: 200 MB of weights preloaded, 1 worker against 4, in the same run.

    python benchmarks/memory.py [MEGABYTES]

The figure is PSS of the whole process tree (/proc/PID/smaps_rollup), in which a page shared by n processes counts 1/n
in each, after
every worker has answered requests that read all weights. Exits with 1 when 4 workers need more than 1.3 times the memory of 1.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

LIMIT = 1.3
REQUESTS = 200
MODEL = """
import numpy as np
from mpserve import Model

class Heavy(Model):
    name = "heavy"
    def preload(self):
        self.weights = np.random.default_rng(0).random({megabytes} * 2**20 // 8)
    def predict(self, payload, headers=None):
        return {{"predictions": [float(self.weights.sum())]}}
"""


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


def ask(port: int, path: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", data, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def wait_until_ready(port: int, workers: int, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(1200):
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        try:
            if f'mpserve_workers{{state="ready"}} {workers}.0' in ask(port, "/metrics").decode():
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    sys.exit("the server was not ready within two minutes")


def measure(workers: int, megabytes: int) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.py")
        model.write_text(MODEL.format(megabytes=megabytes))
        command = [sys.executable, "-m", "mpserve", "serve", str(model), f"--http_port={port}", f"--workers={workers}"]
        environment = os.environ | {
            "MPSERVE_HOST": "127.0.0.1",
            "MPSERVE_LOG_LEVEL": "warning",
            "MPSERVE_ENABLE_GRPC": "no",
        }
        server = subprocess.Popen(command, env=environment)
        try:
            wait_until_ready(port, workers, server)
            for _ in range(REQUESTS):
                ask(port, "/v1/models/heavy:predict", {"instances": [0]})
            return pss_megabytes(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print(f"{megabytes} MB of weights preloaded; PSS of the whole tree after {REQUESTS} requests")
    one = measure(1, megabytes)
    print(f"  1 worker   {one:7.0f} MB")
    four = measure(4, megabytes)
    print(f"  4 workers  {four:7.0f} MB   {four / one:.2f} times 1 worker (at most {LIMIT})")
    sys.exit(0 if four <= LIMIT * one else 1)


if __name__ == "__main__":
    main()
