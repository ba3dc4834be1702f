"""How each server is started, and which protocols it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import THIS_TREE, program
from benchmarks.peers.workloads import Workload

APPS = Path(__file__).parent / "apps"
V2 = {"v2": "/v2/models/bench/infer"}
BINARY = V2 | {"binary": "/v2/models/bench/infer"}
ALL = BINARY | {"v1": "/v1/models/bench:predict"}


@dataclass(frozen=True)
class Setup:
    """What a server is to serve, and where."""

    port: int
    grpc_port: int
    metrics_port: int
    folder: str
    model: str = "identity"
    batch: int = 0
    workers: int = 1
    megabytes: int = 0

    def environment(self) -> dict[str, str]:
        """As apps/models.py reads it. One native thread for everybody: the model is small, the core one."""
        return {f"BENCH_{name.upper()}": str(value) for name, value in vars(self).items()} | {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Server:
    """A server that can be measured.

    Attributes:
        environment: whose Python runs it (environments.py).
        paths: by protocol; ``{rank}`` is the tensor's number of dimensions.
        batches: whether it can join requests.
        scales: whether it runs several workers.
    """

    name: str
    environment: str
    command: Callable[[Setup], list[str]]
    paths: Mapping[str, str]
    batches: bool = True
    scales: bool = True

    def path(self, workload: Workload) -> str | None:
        """The address for a workload, or None if the server does not speak it."""
        path = self.paths.get(workload.protocol)
        return path and path.format(rank=len(workload.shape))


def _app(environment: str, app: str) -> Callable[[Setup], list[str]]:
    return lambda setup: [program(environment), str(APPS / f"{app}.py")]


def _mpserve(app: str) -> Callable[[Setup], list[str]]:
    def command(setup: Setup) -> list[str]:
        flags = {"model_name": "bench", "host": "127.0.0.1", "http_port": setup.port, "enable_grpc": "no"}
        flags |= {"workers": setup.workers, "max_batch_size": setup.batch}
        target = str(APPS / f"{app}.py")
        return [program(THIS_TREE), "-m", "mpserve", "serve", target, *(f"--{k}={v}" for k, v in flags.items())]

    return command


def _gunicorn(setup: Setup) -> list[str]:
    options = ["-k", "uvicorn_worker.UvicornWorker", "-w", str(setup.workers), "-b", f"127.0.0.1:{setup.port}"]
    return [program("bare", "gunicorn"), "bare_app:app", "--preload", "--log-level=warning", *options]


MPSERVE = Server("mpserve", THIS_TREE, _mpserve("mpserve_app"), ALL)
ASYNC = Server("mpserve async", THIS_TREE, _mpserve("mpserve_async_app"), ALL)
RAW = Server("raw", "bare", _app("bare", "raw_app"), V2, batches=False, scales=False)
BARE = Server("bare", "bare", _gunicorn, ALL, batches=False)
MOSEC = Server("mosec", "mosec", _app("mosec", "mosec_app"), {"v2": "/inference"})
TRITON = Server(
    "Triton",
    "triton",
    _app("triton", "triton_app"),
    {protocol: "/v2/models/bench{rank}/infer" for protocol in ("v2", "binary")},
)
MLSERVER = Server("MLServer", "mlserver", _app("mlserver", "mlserver_app"), V2)
LITSERVE = Server("LitServe", "litserve", _app("litserve", "litserve_app"), V2)
KSERVE = Server("kserve", "kserve", _app("kserve", "kserve_app"), ALL, batches=False)
EVERY = (RAW, MPSERVE, ASYNC, BARE, MOSEC, TRITON, MLSERVER, LITSERVE, KSERVE)
"""In the order in which tables show them."""
