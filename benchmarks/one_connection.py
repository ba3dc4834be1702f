"""The latency of one connection that asks one request after the other, beside bare Starlette under gunicorn, in turns.

    python benchmarks/one_connection.py [RUNS]

Each run takes a second. The servers are on one CPU, and then on two; the load is on another CPU where there are three. Prints
the median p50 of the runs, the ratio of the medians, and every run whose p99 is above three times the median of bare's. Exits
with 1 where the ratio is above 1.25 or there is such a run.
"""

import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import wrk
from benchmarks.peers.processes import Running
from benchmarks.peers.sections import CPUS, SERVER_CPU, prepare
from benchmarks.peers.servers import BARE, MPSERVE
from benchmarks.peers.workloads import SMALL

RUNS, SECONDS = 10, 1
MOST_P50, MOST_P99 = 1.25, 3.0


def compare(cpus: set[int], runs: int) -> bool:
    """Whether mpserve is within its limits with the servers on these CPUs."""
    with ExitStack() as stack:
        pair = [Running(server, cpus) for server in (MPSERVE, BARE)]
        for each in pair:
            stack.callback(each.close)
        loads: tuple[list[wrk.Load], list[wrk.Load]] = ([], [])
        for each in pair:
            each.wait_until_ready(SMALL)
            wrk.drive(each.url(SMALL), SMALL, 1, SECONDS)
        for number in range(runs):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                loads[side].append(wrk.drive(pair[side].url(SMALL), SMALL, 1, SECONDS))
    ours, bare = (median(load.p50_ms for load in side) for side in loads)
    late = [load.p99_ms for load in loads[0] if load.p99_ms > MOST_P99 * median(load.p99_ms for load in loads[1])]
    print(f"servers on {len(cpus)} CPU(s): p50 {ours:.3f} ms, bare {bare:.3f} ms, ratio {ours / bare:.2f}")
    for name, side in zip(("mpserve", "bare"), loads, strict=True):
        print(f"  p99 of {name}, ms: {', '.join(f'{load.p99_ms:.2f}' for load in side)}")
    return ours <= MOST_P50 * bare and not late


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    prepare()
    within = [compare(cpus, runs) for cpus in (SERVER_CPU, set(CPUS))]
    sys.exit(0 if all(within) else 1)


if __name__ == "__main__":
    main()
