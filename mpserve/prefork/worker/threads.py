"""How many native threads a process may use: one in the arbiter, its share of the CPUs in a worker.

OpenMP, the BLAS libraries and torch start as many threads as they see CPUs, in every worker, and count the machine's
CPUs rather than the container's share (kserve#1031: 40 threads on 4 CPUs; pytorch/serve#3150). One thread each is no
answer either: it cost torch 43 % (kermitt2/delft#230). So each worker gets cpus / workers.

In the arbiter it is one thread, always: a torch operation that ran there on two threads leaves every forked child
hanging at its next one, since the pool's other threads do not exist in the child (seen with torch 2.13 and libgomp;
pytorch#49555, dmlc/xgboost#8040). The variables must be set before the user's code is imported: the libraries read
them once, and setting them after the preload had no effect (seen).

No numerical framework is imported here; torch is spoken to only if somebody else has imported it. A library that read
its variable in the arbiter and offers no later change (numexpr) keeps to one thread.
"""

import math
import os
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path

import threadpoolctl

NATIVE_POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)


def available_cpus(root: Path = Path("/")) -> float:
    """CPUs that this process may keep busy, at least 1: the smaller of its affinity mask and its cgroups' quotas.

    ``root`` is where ``proc`` and ``sys`` are mounted. A quota may be a fraction: 1.5 CPUs is 150 ms in every 100 ms.
    """
    return max(1.0, min([len(os.sched_getaffinity(0)), *_quotas(root)]))


def budget(workers: int, wanted: int, cpus: float) -> int:
    """Threads for each of ``workers``: ``wanted`` if that is positive, else an equal share of ``cpus``, at least 1."""
    return wanted if wanted > 0 else max(1, math.floor(cpus / workers))


def _quotas(root: Path) -> Iterator[float]:
    for folder in _cgroup_folders(root):
        # cgroup v2 (kernel Documentation/admin-guide/cgroup-v2.rst, "cpu.max"): "<quota or max> <period>"; v1 has a
        # file for each, and -1 for no quota (scheduler/sched-bwc.rst). Both in microseconds.
        fields = _read(folder / "cpu.max").split()
        if not fields:
            fields = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(fields) == 2 and all(field.isdecimal() and int(field) for field in fields):
            yield int(fields[0]) / int(fields[1])


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The process's own cgroup and all above it: a quota set on any of them holds for the process."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / "cpu" if controllers else mount
        # In a container that shares the host's cgroup namespace the path is the host's, and only the mount's root
        # exists here; in a namespace it may climb ("/../x"). What cannot be read sets no limit.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield base.joinpath(*parts[:depth])


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


class ThreadBudget:
    """The native pools of one family of processes: held in the arbiter, released in each worker.

    A variable that the user had set at the first call is the user's: each worker gets it back, and a user's
    ``OMP_NUM_THREADS`` is the budget. The arbiter is held to one thread all the same, because a warm-up at import on
    the user's own two threads hangs the workers just so (seen).
    """

    def __init__(self) -> None:
        self._users: dict[str, str] | None = None
        self._threads = 1

    def hold_to_one(self, environ: MutableMapping[str, str]) -> None:
        """In the arbiter, before the user's code is imported: one thread for each pool, loaded already or later.

        May be called again. It cannot help where two threads have already been used, by a script that is itself the
        main program: a worker's main thread hangs at its next operation then, though a new thread does not (seen).
        """
        self._remember(environ)
        environ.update(dict.fromkeys(NATIVE_POOLS, "1"))
        _limit(openmp=1, blas=1, mkl=1)

    def release(self, threads: int, environ: MutableMapping[str, str]) -> int:
        """In a worker, right after the fork: give the pools ``threads``, and this thread its part.

        Returns the threads in force, which are the user's ``OMP_NUM_THREADS`` where there is one.
        """
        users = self._remember(environ)
        self._threads = _count(users.get("OMP_NUM_THREADS", "")) or threads
        environ.update(dict.fromkeys(NATIVE_POOLS, str(self._threads)) | users)
        self.limit_this_thread()
        return self._threads

    def limit_this_thread(self) -> None:
        """Put the released budget in force for the calling thread: for each thread that will run a model.

        OpenMP keeps its limit per thread, and a new thread starts with what the library read from the environment when
        it was loaded, which is the arbiter's 1 (seen: released to 2, scikit-learn's libgomp still said 1 in a new
        thread). torch and OpenBLAS keep theirs per process.
        """
        users = self._users or {}
        _limit(
            openmp=self._threads,
            blas=_count(users.get("OPENBLAS_NUM_THREADS", "")) or self._threads,
            mkl=_count(users.get("MKL_NUM_THREADS", "")) or self._threads,
        )

    def _remember(self, environ: MutableMapping[str, str]) -> dict[str, str]:
        # Once only: at a second call the variables are ours.
        if self._users is None:
            self._users = {name: environ[name] for name in NATIVE_POOLS if name in environ}
        return self._users


def _limit(openmp: int, blas: int, mkl: int) -> None:
    # torch first: it sets MKL's threads along with its own, and a user's MKL_NUM_THREADS comes after.
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(openmp)
    # Not used as a context manager: the limits are meant to stay.
    threadpoolctl.threadpool_limits({"openmp": openmp, "blas": blas, "libmkl_rt": mkl})


def _count(value: str) -> int:
    """Threads that a variable asks for; 0 if it asks for none. OpenMP allows a list, one number per nesting level."""
    first = value.partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


# This process's own: what the arbiter remembers here reaches its workers through the fork.
_own = ThreadBudget()
hold_to_one = _own.hold_to_one
release = _own.release
limit_this_thread = _own.limit_this_thread
