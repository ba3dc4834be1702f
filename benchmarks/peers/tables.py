"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.peers import servers
from benchmarks.peers.results import Record, Results
from benchmarks.peers.sections import BATCH, WORKERS
from benchmarks.peers.targets import TARGETS
from benchmarks.peers.workloads import IDENTITY, LOADS, MLP, SMALL, Workload

ROW_NAMES = {"raw": "raw (the limit)", "bare": "bare (the yardstick)", "mpserve": "**mpserve**"}
NONE = "-"


def number(value: float | None) -> str:
    """With three significant digits, and without decimals from 100 on."""
    if value is None:
        return NONE
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown; what is right of the first column is set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(ratios: Sequence[float]) -> str:
    """The median, and what it lies between."""
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else NONE


def targets(results: Results) -> str:
    rows = []
    for target in TARGETS:
        found = target.reached(results)
        verdict = NONE if not found else "yes" if median(found) <= target.limit else "**no**"
        rows.append([target.words, f"≤ {target.limit:.2f}", spread(found), verdict])
    return table(["CPU time per request", "wanted", "measured (lowest to highest round)", "reached"], rows)


def cpu(results: Results, workloads: Sequence[Workload] = IDENTITY) -> str:
    """CPU time per request of the identity, with the ratio to bare of the same round."""

    def cell(server: str, workload: Workload) -> str:
        point = {"workload": workload.name, "connections": workload.connections}
        value = results.value(lambda r: r.cpu_ms, "identity", server=server, **point)
        ratio = results.ratio("identity", {"server": server, **point}, {"server": servers.BARE.name, **point})
        return NONE if value is None else number(value) + (f" ({number(ratio)})" if ratio else "")

    rows = [_row(name, (cell(name, w) for w in workloads)) for name in results.servers("identity")]
    return table(["CPU ms per request (over bare)", *(w.title for w in workloads)], rows)


def throughput(results: Results) -> str:
    def cell(server: str, workload: Workload) -> str:
        point = {"server": server, "workload": workload.name, "connections": workload.connections}
        rate, p50, p99 = (
            results.value(get, "identity", **point)
            for get in (lambda r: r.rate, lambda r: r.p50_ms, lambda r: r.p99_ms)
        )
        return NONE if rate is None else f"{number(rate)}; {number(p50)}; {number(p99)}"

    rows = [_row(name, (cell(name, w) for w in IDENTITY)) for name in results.servers("identity")]
    return table(["requests/s; p50 ms; p99 ms", *(w.title for w in IDENTITY)], rows)


def latency(results: Results) -> str:
    def cell(server: str, connections: int) -> str:
        point = {"server": server, "workload": SMALL.name, "connections": connections}
        return number(results.value(lambda r: r.p99_ms, "identity", **point))

    rows = [_row(name, (cell(name, c) for c in LOADS)) for name in results.servers("identity")]
    return table([f"p99 ms, {SMALL.title}", *(f"{c} connections" if c > 1 else "1 connection" for c in LOADS)], rows)


def batching(results: Results) -> str:
    def cells(server: str) -> list[str]:
        points = [{"server": server, "workload": MLP.name, "batch": batch} for batch in (0, BATCH)]
        times = [results.value(lambda r: r.cpu_ms, "mlp", **point) for point in points]
        rates = [results.value(lambda r: r.rate, "mlp", **point) for point in points]
        tails = [results.value(lambda r: r.p99_ms, "mlp", **point) for point in points]
        return [number(value) for pair in (times, rates, tails) for value in pair]

    what = ("CPU ms per request", "requests/s", "p99 ms")
    head = [MLP.title, *(f"{each}, {how}" for each in what for how in ("alone", "in batches"))]
    return table(head, [_row(name, cells(name)) for name in results.servers("mlp")])


def memory(results: Results) -> str:
    def cells(server: str) -> list[str]:
        values = [results.value(lambda r: r.pss_mb, "memory", server=server, workers=count) for count in WORKERS]
        first, last = values[0], values[-1]
        return [*map(number, values), f"{last / first:.2f}" if first and last else NONE]

    head = ["PSS in MB", *(f"{count} workers" if count > 1 else "1 worker" for count in WORKERS), "last over first"]
    return table(head, [_row(name, cells(name)) for name in results.servers("memory")])


def versions(results: Results) -> str:
    found: dict[str, dict[str, str]] = {}
    for heading in results.headings.values():
        found |= heading["versions"]
    rows = [[name, *[", ".join(f"{p} {v}" for p, v in packages.items())]] for name, packages in sorted(found.items())]
    lines = [f"| {name} | {packages} |" for name, packages in rows]
    return "\n".join(["| environment | versions |", "|---|---|", *lines])


def faults(results: Results) -> str:
    """Errors of each server, and what could not be measured."""
    lines = [f"- {r.server}, {r.section}, {r.workload}: {_one_line(r.failure)}" for r in results.records if r.failure]
    counts: dict[str, list[Record]] = {}
    for record in results.records:
        counts.setdefault(record.server, []).append(record)
    for server, records in counts.items():
        if errors := sum(r.errors for r in records):
            lines.append(f"- {server}: {errors} errors in {sum(r.requests for r in records):,} requests")
    total = sum(record.requests for record in results.records)
    return "\n".join(lines or [f"No errors in {total:,} requests."])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _row(server: str, cells: Iterable[str]) -> list[str]:
    return [ROW_NAMES.get(server, server), *cells]
