"""The native thread budget: what the machine gives, and what the arbiter and a worker do with it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import threadpoolctl

from mpserve.prefork.worker.threads import NATIVE_POOLS, ThreadBudget, available_cpus, budget
from tests.cases import each

pytestmark = pytest.mark.e2e

AFFINITY = len(os.sched_getaffinity(0))
V1 = {"cpu.cfs_quota_us": "150000", "cpu.cfs_period_us": "100000"}


def machine(root: Path, membership: str, files: dict[str, str]) -> Path:
    """A root folder with this /proc/self/cgroup and these files under /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": membership, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return root


@pytest.mark.parametrize(("membership", "files", "quota"), [
    pytest.param("0::/", {"cpu.max": "150000 100000"}, 1.5, id="v2 container"),
    pytest.param("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5, id="v2 parent"),
    pytest.param("0::/a", {"a/cpu.max": "150000 100000", "cpu.max": "900000 100000"}, 1.5, id="v2 smallest"),
    pytest.param("0::/kubepods/pod1/c1", {"cpu.max": "150000 100000"}, 1.5, id="v2 path of the host"),
    pytest.param("0::/../c1", {"c1/cpu.max": "150000 100000"}, 1.5, id="v2 path above the namespace"),
    pytest.param("0::/", {"cpu.max": "max 100000"}, None, id="v2 no quota"),
    pytest.param("0::/", {"cpu.max": "20000 100000"}, 1, id="v2 less than one, which counts as one"),
    pytest.param("4:cpu,cpuacct:/a\n0::/", {f"cpu/a/{k}": v for k, v in V1.items()}, 1.5, id="v1"),
    pytest.param("1:cpu:/docker/x", {f"cpu/{k}": v for k, v in V1.items()}, 1.5, id="v1 path of the host"),
    pytest.param("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, id="v1 none"),
    pytest.param("2:cpuset:/a", {f"cpuset/a/{k}": v for k, v in V1.items()}, None, id="v1 other controller"),
])  # fmt: skip
def test_the_smallest_quota_counts(membership: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    expected = AFFINITY if quota is None else min(AFFINITY, quota)
    assert available_cpus(machine(tmp_path, membership, files)) == expected


def test_affinity_counts_where_there_is_no_cgroup(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == AFFINITY


@each("workers, wanted, cpus, threads", [
    (1, 0, 8, 8), (3, 0, 8, 2), (2, 0, 1.5, 1), (8, 0, 2, 1), (1, 0, 3.9, 3), (4, 6, 8, 6),
])  # fmt: skip
def test_a_worker_gets_what_is_wanted_or_its_share(workers: int, wanted: int, cpus: float, threads: int) -> None:
    assert budget(workers, wanted, cpus) == threads


@pytest.fixture(name="_pools_put_back")
def pools_put_back() -> Iterator[None]:
    """A budget changes the pools of the process it is used in, which here is the test run's own."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    with threadpoolctl.threadpool_limits():
        yield
    if torch is not None:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("_pools_put_back")
@each("own, threads", [
    ({}, 2), ({"PATH": "/bin"}, 2), ({"MKL_NUM_THREADS": "3"}, 2), ({"OMP_NUM_THREADS": "4"}, 4),
    ({"OMP_NUM_THREADS": "4,2"}, 4), ({"OMP_NUM_THREADS": ""}, 2), ({"OMP_NUM_THREADS": "many"}, 2),
    ({"OMP_NUM_THREADS": "0"}, 2),
])  # fmt: skip
def test_the_arbiter_is_held_to_one_and_the_worker_gets_the_budget_and_the_users_own_variables(
    own: dict[str, str], threads: int
) -> None:
    environ = dict(own)
    budget = ThreadBudget()
    budget.hold_to_one(environ)
    budget.hold_to_one(environ)
    assert environ == own | dict.fromkeys(NATIVE_POOLS, "1")
    assert budget.release(2, environ) == threads
    assert environ == dict.fromkeys(NATIVE_POOLS, str(threads)) | own


# The arbiter works as a user's warm-up does, then forks a worker that works on two threads. A worker that hangs is
# ended by its own alarm, whose signal is then its exit status.
FORK = """
import json, os, signal, sys, threading
import threadpoolctl
if sys.argv[1] == "torch first":
    import torch
from mpserve.prefork.worker import threads

threads.hold_to_one(os.environ)
threads.hold_to_one(os.environ)
import sklearn.ensemble, torch

def work():
    x = torch.rand(600, 600)
    torch.exp(x @ x).sum().item()

def report(who):
    pools = threadpoolctl.threadpool_info()
    counts = {"torch": torch.get_num_threads()}
    for api in ("openmp", "blas"):
        counts[api] = sorted(pool["num_threads"] for pool in pools if pool["user_api"] == api)
    print(json.dumps([who, counts]), flush=True)

def model_thread():
    threads.limit_this_thread()
    work()
    report("model thread")

work()
report("arbiter")
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    threads.release(2, os.environ)
    work()
    report("worker")
    thread = threading.Thread(target=model_thread)
    thread.start()
    thread.join()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.parametrize("order", ["torch first", "torch later"])
@pytest.mark.parametrize("own", [None, "2"], ids=["no variable", "OMP_NUM_THREADS=2 of the user's"])
def test_a_worker_computes_on_its_threads_after_the_arbiter_computed_on_one(order: str, own: str | None) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in NATIVE_POOLS}
    if own is not None:
        environ["OMP_NUM_THREADS"] = own
    command = [sys.executable, "-c", FORK, order]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    seen: dict[str, dict[str, Any]] = dict(json.loads(line) for line in done.stdout.splitlines())
    assert list(seen) == ["arbiter", "worker", "model thread"]
    for who, threads in {"arbiter": 1, "worker": 2, "model thread": 2}.items():
        told = seen[who]
        assert (told["torch"], set(told["openmp"]), set(told["blas"])) == (threads, {threads}, {threads})
