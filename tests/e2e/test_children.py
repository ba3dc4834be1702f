"""Processes that a model forks: they end alone or with their worker, and hold no port."""

import os
import signal
from pathlib import Path

import psutil
import pytest

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


FAMILY = """
import multiprocessing, os, subprocess, threading, time
from mpserve import Model

fork = multiprocessing.get_context("fork")

def made(daemon):
    child = fork.Process(target=time.sleep, args=(600,), daemon=daemon)
    child.start()
    return child

class Parent(Model):
    name = "m"

    def load(self):
        made_in_load = []
        thread = threading.Thread(target=lambda: made_in_load.append(made(True)))  # a thread that ends before the child
        thread.start()
        thread.join()
        self.children = [*made_in_load, made(True), made(False)]
        return True

    def predict(self, payload, headers=None):
        pool = fork.Pool(1)
        self.children.append(pool)
        in_pool = pool.apply(os.getpid)
        reading, writing = os.pipe()
        if not os.fork():
            detached = os.fork()
            if detached:
                os.write(writing, b"%d" % detached)
                os._exit(0)
            time.sleep(600)
            os._exit(0)
        detached = int(os.read(reading, 20))
        program = subprocess.Popen(["sleep", "600"]).pid
        return {"predictions": [*(child.pid for child in self.children[:3]), in_pool, detached, program]}
"""


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
        eventually(lambda: listening(left) == set())  # the fork returns in the worker before the child has begun
        os.kill(left, signal.SIGTERM)
        eventually(lambda: has_ended(left))
        assert server.workers() == [worker]


PROGRAMS = """
import subprocess
from mpserve import Model

class Parent(Model):
    name = "m"
    def predict(self, payload, headers=None):
        # preexec_fn: Python forks, with all that is registered for a fork
        programs = [subprocess.Popen(["sleep", "0.1"], preexec_fn=int) for _ in range(50)]
        return {"predictions": [program.wait() for program in programs]}
"""


def test_grpc_does_not_abort_the_programs_that_a_model_starts(tmp_path: Path) -> None:
    """It aborted one or two of a hundred."""
    with serving(tmp_path, PROGRAMS, f"--grpc_port={free_port()}", env={"MPSERVE_ENABLE_GRPC": "yes"}) as server:
        server.wait_ready()
        for _ in range(4):
            answer = server.client.post("/v1/models/m:predict", json={}, timeout=PATIENCE)
            assert answer.json()["predictions"] == [0] * 50


ENDS = [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL]


@pytest.mark.parametrize("end", ENDS, ids=[end.name for end in ENDS])
def test_children_end_with_their_worker_however_it_ends(tmp_path: Path, end: signal.Signals) -> None:
    with serving(tmp_path, FAMILY) as server:
        [worker] = server.wait_ready().workers()
        family = server.client.post("/v1/models/m:predict", json={}, timeout=PATIENCE).json()["predictions"]
        *ending, detached, program = family
        try:
            assert not [pid for pid in family if has_ended(pid)]
            os.kill(worker, end)
            eventually(lambda: all(has_ended(pid) for pid in ending))
            assert not [pid for pid in (detached, program) if has_ended(pid)]
        finally:
            os.kill(detached, signal.SIGKILL)
            os.kill(program, signal.SIGKILL)


SPAWNED = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from mpserve import Model

class Parent(Model):
    name = "m"
    def predict(self, payload, headers=None):
        pids = []
        self.kept = []
        for method in ("spawn", "forkserver"):
            context = multiprocessing.get_context(method)
            child = context.Process(target=time.sleep, args=(600,), daemon=True)
            child.start()
            pool = ProcessPoolExecutor(1, mp_context=context)
            self.kept += [child, pool]
            pids += [child.pid, pool.submit(os.getpid).result()]
        return {"predictions": pids}
"""


@pytest.mark.parametrize("end", ENDS[:2], ids=[end.name for end in ENDS[:2]])
def test_children_that_are_not_forked_end_with_a_worker_that_ends_by_itself(
    tmp_path: Path, end: signal.Signals
) -> None:
    with serving(tmp_path, SPAWNED) as server:
        [worker] = server.wait_ready().workers()
        children = server.client.post("/v1/models/m:predict", json={}, timeout=PATIENCE).json()["predictions"]
        assert not [pid for pid in children if has_ended(pid)]
        os.kill(worker, end)
        eventually(lambda: all(has_ended(pid) for pid in children))
