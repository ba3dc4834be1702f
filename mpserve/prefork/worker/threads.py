"""Limits the native threads of a process: one in the arbiter, its share of the CPUs in a worker.

OpenMP, the BLAS libraries and torch start as many threads as the machine has CPUs, in every worker, whatever the container's
share is (kserve#1031: 40 threads on 4 CPUs; pytorch/serve#3150). So each worker gets cpus / workers.

The arbiter has one thread: after a torch operation on two threads there, every forked child hangs at its next operation, since
the pool's threads do not exist in the child (torch 2.13 with libgomp; pytorch#49555, dmlc/xgboost#8040). The variables must
be set before the user's code is imported, since the libraries read them once.

This module imports no numerical framework; it uses torch if the user's code has imported it. A library that reads its variable
only once (numexpr) keeps one thread.
"""

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import threadpoolctl

NATIVE_POOLS = tuple(f"{pool}_NUM_THREADS" for pool in ("OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR", "RAYON"))


def available_cpus(root: Path = Path("/")) -> float:
    """CPUs that this process may use, at least 1: the minimum of its affinity mask and its cgroups' quotas.

    ``root`` has the mounts ``proc`` and ``sys``. A quota may be a fraction.
    """
    return max(1.0, min([len(os.sched_getaffinity(0)), *_quotas(root)]))


def budget(workers: int, threads: int, cpus: float) -> int:
    """Threads of each worker: ``threads`` if that is positive, else an equal share of ``cpus``, at least 1."""
    return threads if threads > 0 else max(1, math.floor(cpus / workers))


def _quotas(root: Path) -> Iterator[float]:
    for folder in cgroup_folders(root):
        # cgroup v2 (Linux, admin-guide/cgroup-v2.rst, "cpu.max"): "<quota or max> <period>". v1 has a file for each, and -1
        # for no quota (scheduler/sched-bwc.rst). All in microseconds.
        fields = _read(folder / "cpu.max").split()
        if not fields:
            fields = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(fields) == 2 and all(field.isdecimal() and int(field) for field in fields):
            yield int(fields[0]) / int(fields[1])


def cgroup_folders(root: Path, controller: str = "cpu") -> Iterator[Path]:
    """The cgroup of the process and its parents. A limit of any of them holds for the process."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = mount / controller if controllers else mount
        # In a container the path may be the host's, of which only the root exists here, or begin with "/../". A file that
        # cannot be read sets no limit.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth])


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


class ThreadBudget:
    """Limits the native pools to one thread in the arbiter, and raises the limit in each worker.

    A worker gets back the variables that the user had set before the first call. The user's ``OMP_NUM_THREADS`` is the budget.
    The arbiter has one thread even then.
    """

    def __init__(self) -> None:
        self._users: dict[str, str] | None = None
        self._threads = 1

    def hold_to_one(self, environ: MutableMapping[str, str]) -> None:
        """In the arbiter, before the user's code is imported: limit each pool to one thread. May be called again.

        This is too late if a script, which is the main program, has used two threads already.
        """
        self._remember(environ)
        environ.update(dict.fromkeys(NATIVE_POOLS, "1"))
        _limit(openmp=1, blas=1, mkl=1)

    def release(self, threads: int, environ: MutableMapping[str, str]) -> int:
        """In a worker, right after the fork: limit the pools to ``threads``, or to the user's ``OMP_NUM_THREADS``.

        Returns the limit.
        """
        users = self._remember(environ)
        self._threads = _count(users.get("OMP_NUM_THREADS", "")) or threads
        environ.update(dict.fromkeys(NATIVE_POOLS, str(self._threads)) | users)
        self.limit_this_thread()
        return self._threads

    def limit_this_thread(self) -> None:
        """Apply the limit to the calling thread. Call this in each thread that runs a model.

        OpenMP has a limit per thread, and a new thread starts with the limit of the arbiter. torch and OpenBLAS have a limit
        per process.
        """
        users = self._users or {}
        _limit(
            openmp=self._threads,
            blas=_count(users.get("OPENBLAS_NUM_THREADS", "")) or self._threads,
            mkl=_count(users.get("MKL_NUM_THREADS", "")) or self._threads,
        )

    def _remember(self, environ: MutableMapping[str, str]) -> dict[str, str]:
        # At a second call the variables are ours.
        if self._users is None:
            self._users = {name: environ[name] for name in NATIVE_POOLS if name in environ}
        return self._users


def _limit(openmp: int, blas: int, mkl: int) -> None:
    # torch first, since it sets MKL's threads too, and a user's MKL_NUM_THREADS overrides it.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(openmp)
    threadpoolctl.threadpool_limits({"openmp": openmp, "blas": blas, "libmkl_rt": mkl})


def _count(value: str) -> int:
    """The number of threads in a variable, or 0. OpenMP allows a list with a number for each nesting level."""
    first = value.partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


# Workers inherit this object from the arbiter.
_own = ThreadBudget()
hold_to_one = _own.hold_to_one
release = _own.release
limit_this_thread = _own.limit_this_thread
