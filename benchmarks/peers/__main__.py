"""mpserve, a bare application and every installed peer in one run.

    python -m benchmarks.peers install [PEER...]           an environment for each, in $MPSERVE_PEERS
    python -m benchmarks.peers run [SECTION...]            identity, mlp, memory: measure and print
    python -m benchmarks.peers report                      write tables and pictures into docs/ and README.md

`run` keeps its results in docs/benchmarks/results.jsonl; sections that are not run again stay as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.peers import environments, report
from benchmarks.peers.results import Record, Results, heading
from benchmarks.peers.sections import SECTIONS, prepare
from benchmarks.peers.servers import EVERY, Server


def install(names: list[str]) -> int:
    """Make the environments; one that fails does not keep the others from being made."""
    if unknown := set(names) - set(environments.names()):
        sys.exit(f"no such peers: {', '.join(sorted(unknown))}; there are {', '.join(environments.names())}")
    failed = []
    for name in names or sorted({server.environment for server in EVERY if server.environment}):
        try:
            environments.install(name)
        except (OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"{name}: not installed: {error}", file=sys.stderr)
    return len(failed)


def installed(names: list[str]) -> list[Server]:
    """The servers to measure; what is missing is said."""
    for name in sorted({server.environment for server in EVERY if not environments.is_installed(server.environment)}):
        print(f"{name}: skipped, since it is not installed in {environments.ROOT}")
    chosen = [server for server in EVERY if environments.is_installed(server.environment)]
    return [server for server in chosen if not names or server.name in names]


def run(sections: list[str], names: list[str], rounds: int, seconds: int, path: Path) -> None:
    prepare()
    chosen = installed(names)
    for section in sections:
        results = Results.read(path).without(section)
        results.headings[section] = heading(section, chosen, rounds, seconds)

        def record(row: Record, results: Results = results) -> None:
            results.records.append(row)
            print(report.progress(row), flush=True)

        SECTIONS[section](chosen, rounds, seconds, record)
        results.write(path)
    print(report.text(Results.read(path)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("install").add_argument("peers", nargs="*")
    runs = verbs.add_parser("run")
    runs.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    runs.add_argument("--servers", default="", help="names, with commas; all that are installed if left out")
    runs.add_argument("--rounds", type=int, default=3)
    runs.add_argument("--seconds", type=int, default=1, help="of load for each measurement")
    for each in (runs, verbs.add_parser("report")):
        each.add_argument("--results", type=Path, default=report.RESULTS)
    given = parser.parse_args()
    if given.verb == "install":
        sys.exit(install(given.peers))
    if given.verb == "report":
        return report.write(Results.read(given.results))
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such sections: {', '.join(sorted(unknown))}")
    names = [name for name in given.servers.split(",") if name]
    return run(given.sections or list(SECTIONS), names, given.rounds, given.seconds, given.results)


if __name__ == "__main__":
    main()
