"""What mpserve wants to reach, each against something measured in the same round."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.peers import servers
from benchmarks.peers.results import Results, ratios
from benchmarks.peers.sections import BATCH
from benchmarks.peers.workloads import BINARY, LARGE, MEDIUM, MLP, SMALL, V1_MEDIUM, V1_SMALL, Workload


class Target(NamedTuple):
    """A ratio that is to stay within a limit: CPU time per request of ``of`` over that of ``to``."""

    words: str
    limit: float
    section: str
    of: dict[str, Any]
    to: dict[str, Any]

    def reached(self, results: Results) -> list[float]:
        """The ratio in each round."""
        return ratios(results.select(self.section, **self.of), results.select(self.section, **self.to))


def _identity(server: servers.Server, workload: Workload) -> dict[str, Any]:
    return {"server": server.name, "workload": workload.name, "connections": workload.connections}


def _against_bare(workload: Workload, limit: float) -> Target:
    ours, bare = _identity(servers.MPSERVE, workload), _identity(servers.BARE, workload)
    return Target(f"{workload.title}, over bare", limit, "identity", ours, bare)


def _v1_against_v2(v1: Workload, v2: Workload) -> Target:
    of, to = _identity(servers.MPSERVE, v1), _identity(servers.MPSERVE, v2)
    return Target(f"{v1.title}, over V2", 1.0, "identity", of, to)


def _async(to: servers.Server, limit: float) -> Target:
    words = f"{SMALL.title}, async predict, over {to.name}"
    return Target(words, limit, "identity", _identity(servers.ASYNC, SMALL), _identity(to, SMALL))


def _mlp(server: servers.Server) -> dict[str, Any]:
    return {"server": server.name, "workload": MLP.name, "batch": BATCH}


TARGETS = (
    _against_bare(SMALL, 0.75),
    _async(servers.BARE, 0.6),
    _async(servers.RAW, 2.0),
    _against_bare(MEDIUM, 0.8),
    _against_bare(LARGE, 0.7),
    _against_bare(BINARY, 1.0),
    _v1_against_v2(V1_SMALL, SMALL),
    _v1_against_v2(V1_MEDIUM, MEDIUM),
    Target(f"{MLP.title} in batches, over mosec", 1.0, "mlp", _mlp(servers.MPSERVE), _mlp(servers.MOSEC)),
)
