"""A full /dev/shm costs numbers and loads, and no answer and no worker."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.workers import kill_and_await_successor
from tests.running import eventually, free_port, running

PRIVATE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
"""Runs a command with mounts of its own."""
MOUNT = 'mount -t tmpfs -o size=2m none /dev/shm && exec "$@"'

MODEL = """
import errno
from pathlib import Path
from prometheus_client import Counter

SEEN = Counter("seen", "Words seen.", ["word"])
HOG = Path("/dev/shm/hog")

def predict(words):
    word = getattr(words[0], "decode", words[0].__str__)()
    if word == "fill":
        try:
            with HOG.open("ab", buffering=0) as hog:
                while hog.write(bytes(512)):
                    pass
        except OSError as error:
            assert error.errno == errno.ENOSPC
    elif word == "empty":
        HOG.unlink()
    else:
        SEEN.labels(word).inc()
    return words
"""


def may_mount() -> bool:
    try:
        return subprocess.run([*PRIVATE, MOUNT, "sh", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not may_mount(), reason="this user may not mount a file system of its own")
def test_a_full_dev_shm_costs_no_answer_and_no_worker(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(MODEL)
    port = free_port()
    serve = [sys.executable, "-m", "mpserve", "serve", "--model_dir=models", "--workers=2", f"--http_port={port}"]
    with running([*PRIVATE, MOUNT, "sh", *serve], tmp_path, port) as server:
        server.wait_ready(workers=2)
        assert server.predict("m", ["fill"]).status_code == 200
        # The keys are long, so that the files would have to grow.
        words = [f"{number}{'x' * 500}" for number in range(30)]
        statuses = {server.predict("m", [word]).status_code for word in words for _ in range(2)}
        assert statuses == {200}
        server.client.close()
        kill_and_await_successor(server, server.workers()[0])
        server.client = type(server.client)(base_url=server.url, timeout=60)
        assert {server.predict("m", [word]).status_code for word in words} == {200}

        def refused() -> bool:
            server.predict("m", ["fill"])  # again, since the workers take room for a moment when they try to write
            answer = server.client.post("/v2/repository/models/m/load")
            return answer.status_code == 500 and "cannot be written: No space left on device" in answer.text

        eventually(refused)
        eventually(lambda: server.metric("mpserve_metrics_failed_flushes_total"))
        assert server.log.count("metrics have no room and are kept until there is some") <= 3  # once for each worker

        assert server.predict("m", ["empty"]).status_code == 200
        eventually(lambda: server.client.post("/v2/repository/models/m/load").status_code == 200)
        assert server.predict("m", ["later"]).status_code == 200
        eventually(lambda: server.metric('seen_total{word="later"}') == 1)
        assert server.metric(f'seen_total{{word="{words[-1]}"}}') >= 1
        assert "SIGBUS" not in server.log
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait_end() == 0
