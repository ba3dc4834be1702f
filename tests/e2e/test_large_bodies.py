"""What large bodies cost in memory: the benchmark with smaller ones, by its own limit."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "large_bodies.py"


def test_sixteen_large_requests_at_once_need_at_most_three_times_their_bytes() -> None:
    run = subprocess.run(
        [sys.executable, str(BENCHMARK), "8"], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "HTTP" in run.stdout
    assert "gRPC" in run.stdout
