"""Processes that a model forks: they end alone and hold no port."""

import os
import signal
from pathlib import Path

import psutil

from tests.running import PATIENCE, eventually, free_port, serving

SOURCE = """
import multiprocessing, os, time
from mpserve import Model

fork = multiprocessing.get_context("fork")

class Parent(Model):
    name = "m"
    def predict(self, payload, headers=None):
        child = fork.Process(target=time.sleep, args=(600,))
        child.start()
        if payload["how"] == "terminate":
            child.terminate()
            child.join(10)
            return {"predictions": [child.exitcode, os.getpid()]}
        return {"predictions": [child.pid, os.getpid()]}
"""


def listening(pid: int) -> set[int]:
    return {found.laddr.port for found in psutil.Process(pid).net_connections("inet")}


def test_children_end_alone_and_hold_no_port(tmp_path: Path) -> None:
    env = {"MPSERVE_ENABLE_GRPC": "yes"}
    grpc = free_port()
    with serving(tmp_path, SOURCE, f"--grpc_port={grpc}", env=env) as server:

        def ask(how: str) -> list[int]:
            answer = server.client.post("/v1/models/m:predict", json={"how": how}, timeout=PATIENCE)
            found: list[int] = answer.json()["predictions"]
            return found

        [worker] = server.wait_ready().workers()
        assert [ask("terminate") for _ in range(20)] == [[-signal.SIGTERM, worker]] * 20
        left = ask("leave")[0]
        assert listening(worker) >= {server.port, grpc}
        assert listening(left) == set()
        os.kill(worker, signal.SIGTERM)
        eventually(lambda: server.workers() not in ([worker], []))
        assert psutil.pid_exists(left)
        os.kill(left, signal.SIGTERM)
        eventually(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)
