"""The four pictures of a run."""

from __future__ import annotations

from benchmarks.peers import servers, svg
from benchmarks.peers.results import Record, Results
from benchmarks.peers.sections import BATCH, MEGABYTES, WORKERS
from benchmarks.peers.svg import Bar
from benchmarks.peers.workloads import BINARY, LARGE, LOADS, MEDIUM, MLP, SMALL

ONE_CORE = "requests per second of CPU time of the whole server, one worker"


def draw(results: Results) -> dict[str, str]:
    """By their names, those for which there are measurements."""
    drawn = {"identity": ("throughput", "latency"), "mlp": ("batching",), "memory": ("memory",)}
    functions = {"throughput": throughput, "latency": latency, "batching": batching, "memory": memory}
    return {name: functions[name](results) for section in drawn if results.servers(section) for name in drawn[section]}


def throughput(results: Results) -> str:
    """What one core can answer, by kind of request."""
    panels = {}
    for workload in (SMALL, MEDIUM, LARGE, BINARY):
        point = {"workload": workload.name, "connections": workload.connections}
        panels[workload.title] = [
            Bar(name, [results.value(per_cpu_second, "identity", server=name, **point)], _colour(name))
            for name in results.servers("identity")
            if name != servers.ASYNC.name
        ]
    return svg.bars("What one core answers", f"identity model; {ONE_CORE}; more is better", panels)


def latency(results: Results) -> str:
    """The slowest hundredth, by how many ask at once."""
    series = {
        name: [
            results.value(lambda r: r.p99_ms, "identity", server=name, workload=SMALL.name, connections=count)
            for count in LOADS
        ]
        for name in results.servers("identity")
    }
    steps = [f"{count} connection{'s' * (count > 1)}" for count in LOADS]
    subtitle = f"99th percentile in ms, {SMALL.title}, each connection asks again at once; logarithmic; less is better"
    return svg.lines("Latency under load", subtitle, steps, _whole(series), "ms", log=True)


def batching(results: Results) -> str:
    """One at a time, and joined."""
    rows = []
    for name in results.servers("mlp"):
        values = [results.value(per_cpu_second, "mlp", server=name, batch=batch) for batch in (BATCH, 0)]
        rows.append(Bar(name, values, _colour(name), svg.PALE if name == servers.MPSERVE.name else svg.GRID))
    subtitle = f"{ONE_CORE}; dark: batches of up to {BATCH} rows, pale: one at a time"
    return svg.bars("Batching a small torch model", subtitle, {f"{MLP.title}, {MLP.connections} connections": rows})


def memory(results: Results) -> str:
    """By the number of workers."""
    series = {
        name: [results.value(lambda r: r.pss_mb, "memory", server=name, workers=count) for count in WORKERS]
        for name in results.servers("memory")
    }
    steps = [f"{count} worker{'s' * (count > 1)}" for count in WORKERS]
    subtitle = f"PSS of all processes in MB, with {MEGABYTES} MB of weights, after load; less is better"
    return svg.lines("Memory of several workers", subtitle, steps, _whole(series), "MB", log=False)


def per_cpu_second(record: Record) -> float:
    return record.requests / record.cpu_s if record.cpu_s else 0.0


def _colour(name: str) -> str:
    if name == servers.MPSERVE.name:
        return svg.OURS
    return svg.YARDSTICK if name in (servers.RAW.name, servers.BARE.name) else svg.OTHER


def _whole(series: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Those that have a value for each step: ours first, since colours go by the order."""
    whole = {name: line for name, line in series.items() if all(line)}
    return dict(sorted(whole.items(), key=lambda item: item[0] != servers.MPSERVE.name))
