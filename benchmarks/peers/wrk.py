"""The load: wrk, as Debian packages it, with one thread on one CPU and a body that never changes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.workloads import Workload

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT = 20
"""Seconds after which wrk counts a request as an error."""


class Load(NamedTuple):
    """What wrk saw. Errors are those of the socket, timeouts, and answers of 400 and above."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int


def parse(output: str) -> Load:
    """Read what post.lua has printed.

    Raises:
        ValueError: it printed nothing; wrk's own words are in the message.
    """
    for line in output.splitlines():
        if line.startswith("{"):
            return Load(**json.loads(line))
    raise ValueError(f"wrk said: {output.strip()}")


def drive(url: str, workload: Workload, connections: int, seconds: int) -> Load:
    """Keep so many connections busy for so long; each sends its next request when the last is answered."""
    body, headers = workload.body(workload.x)
    environment = os.environ | {"BENCH_CONTENT_TYPE": headers["Content-Type"]}
    if "Inference-Header-Content-Length" in headers:
        environment["BENCH_HEADER_LENGTH"] = headers["Inference-Header-Content-Length"]
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT}s", "-s", str(SCRIPT), url]
        done = subprocess.run(
            command, env=environment | {"BENCH_BODY": file.name}, capture_output=True, text=True, check=False
        )
    return parse(done.stdout + done.stderr)


def version() -> str:
    """As wrk prints it, together with its usage."""
    words = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    return words[1] if len(words) > 1 else "unknown"
