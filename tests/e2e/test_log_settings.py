"""A log level that one worker is told is every worker's, also that of one that starts later."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx

from tests.running import PATIENCE, Server, eventually, serving

SOURCE = """
import logging, os
from mpserve import Model

class Pid(Model):
    name = "pid"
    def predict(self, payload, headers=None):
        return {"predictions": [[os.getpid(), logging.getLogger().level]]}
"""


def levels(server: Server) -> dict[int, int]:
    """The level of each worker that answers, by pid; each request has a connection of its own."""
    asked: list[Any] = [
        httpx.post(f"{server.url}/v1/models/pid:predict", json={"instances": []}, timeout=PATIENCE, verify=False).json()
        for _ in range(24)
    ]
    return dict(answer["predictions"][0] for answer in asked)


def all_at(server: Server, level: int) -> bool:
    found = levels(server)
    return set(found) == set(server.workers()) and set(found.values()) == {level}


def test_every_worker_follows_and_so_does_a_respawned_one(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--workers=2") as server:
        server.wait_ready(workers=2)
        eventually(lambda: all_at(server, 20))
        changed = httpx.post(
            f"{server.url}/v2/logging", json={"log_verbose_level": 1}, timeout=PATIENCE, verify=False
        ).json()
        told = [httpx.get(f"{server.url}/v2/logging", timeout=PATIENCE, verify=False).json() for _ in range(8)]
        assert [each for each in told if each != changed] == []
        eventually(lambda: all_at(server, 10))
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: victim not in server.workers() and server.states().get("ready") == 2)
        eventually(lambda: all_at(server, 10))
        assert "a client has set the log level to DEBUG" in server.log
