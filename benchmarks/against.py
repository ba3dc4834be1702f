"""This tree against another revision of it: CPU time per request, measured in turns.

    python -m benchmarks.against REVISION [ROUNDS]

The other revision is checked out into a folder of its own for as long as this runs, and both run in this environment: what
they depend on is the same. Requests, checks and load are those of benchmarks/peers. A ratio below 1 says that this tree
needs less.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from benchmarks.peers.processes import NotServing, Running
from benchmarks.peers.results import TREE, Record, ratios
from benchmarks.peers.sections import BATCH, SERVER_CPU, measure, prepare
from benchmarks.peers.servers import ASYNC, MPSERVE, Server
from benchmarks.peers.tables import number, spread, table
from benchmarks.peers.workloads import IDENTITY, MLP, SMALL, Workload, WrongAnswer

ROUNDS, SECONDS = 3, 1
PLAN: list[tuple[Server, dict[str, str | int], tuple[Workload, ...]]] = [
    (MPSERVE, {}, IDENTITY),
    (ASYNC, {}, (SMALL,)),
    (MPSERVE, {"model": "mlp", "batch": BATCH}, (MLP,)),
]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """The revision in a folder of its own.

    Raises:
        SystemExit: git knows no such revision, and says so on stderr.
    """
    git = ["git", "-C", str(TREE), "worktree"]
    with tempfile.TemporaryDirectory(prefix="mpserve-against-") as folder:
        tree = Path(folder, "tree")
        if subprocess.run([*git, "add", "--quiet", "--detach", str(tree), revision], check=False).returncode:
            sys.exit(1)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def take_turns(pair: list[Running], workload: Workload, rounds: int) -> list[str]:
    """Measure both, the other one first in every second round; a row of the table."""
    found: tuple[list[Record], list[Record]] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            measure("against", pair[side], workload, workload.connections, turn, SECONDS, found[side].append)
    if failed := [row.failure for rows in found for row in rows if row.failure]:
        return [title(pair[0], workload), "-", "-", "-", failed[0]]
    middle = [number(median(row.cpu_ms for row in rows)) for rows in found]
    errors = sum(row.errors for rows in found for row in rows)
    return [title(pair[0], workload), *middle, spread(ratios(*found)), str(errors)]


def title(running: Running, workload: Workload) -> str:
    batch = f" in batches of {running.setup.batch}" if running.setup.batch else ""
    return workload.title + batch + (", async predict" if running.server is ASYNC else "")


def compare(revision: str, rounds: int) -> list[list[str]]:
    rows = []
    with checked_out(revision) as other, ExitStack() as stack:
        pairs = []
        for server, setup, workloads in PLAN:
            pair = []
            for tree in (TREE, other):
                pair.append(Running(server, SERVER_CPU, {"PYTHONPATH": str(tree)}, **setup))
                stack.callback(pair[-1].close)
            pairs.append((pair, workloads))
        for pair, workloads in pairs:
            for running in pair:
                running.wait_until_ready(workloads[0])
            for workload in workloads:
                rows.append(take_turns(pair, workload, rounds))
                print(".", end="", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit("which revision? For example: python -m benchmarks.against main")
    revision, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else ROUNDS
    prepare()
    try:
        rows = compare(revision, rounds)
    except (NotServing, WrongAnswer) as error:
        sys.exit(str(error))
    print()
    print(table(["CPU ms per request", "this tree", revision, "ratio (lowest to highest)", "errors"], rows))


if __name__ == "__main__":
    main()
