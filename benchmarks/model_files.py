"""What a request to a model file costs, beside MLServer, kserve's servers and the library alone, in one run.

    python -m benchmarks.peers install mlserver-files kserve-files
    python -m benchmarks.model_files [--rounds N] [--seconds N] [--write]

Files of scikit-learn, XGBoost and LightGBM; 1 row and 1,000 rows; V2 JSON and binary; and the memory of 1 and 4 workers with a
forest of 200 MB. CPU time is of the whole process tree, on one CPU and one native thread. Everybody takes turns, and before
each measurement an answer is compared with the library's own. ``--write`` puts the tables into docs/reference/files.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import lightgbm
import numpy as np
import orjson
import xgboost
from sklearn.datasets import make_regression
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from benchmarks.peers import environments, report, wrk
from benchmarks.peers.environments import THIS_TREE
from benchmarks.peers.processes import NotServing, Running
from benchmarks.peers.results import TREE, Record, Results, heading, ratios
from benchmarks.peers.sections import CPUS, LOAD_CPU, SERVER_CPU, measure, prepare, started
from benchmarks.peers.servers import BINARY, KSERVE, MLSERVER, V2, Server, Setup
from benchmarks.peers.tables import number, spread, table
from benchmarks.peers.workloads import Array, Workload, WrongAnswer

SECTION, LIBRARY = "files", "library"
COLUMNS = 20
CONNECTIONS = {1: 16, 1000: 4}
"""By the number of rows of a request."""
WORKERS = (1, 4)
DOCUMENT = TREE / "docs" / "reference" / "files.md"
DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}

Predict = Callable[[Array], Any]


def _mpserve(setup: Setup) -> list[str]:
    flags = {"model_name": "bench", "host": "127.0.0.1", "http_port": setup.port, "workers": setup.workers}
    flags["enable_grpc"] = "no"
    return [
        environments.program(THIS_TREE), "-m", "mpserve", "serve", setup.model, *(f"--{k}={v}" for k, v in flags.items()),
    ]  # fmt: skip


def _kserve(setup: Setup) -> list[str]:
    return [environments.program("kserve-files"), "kserve_files_app.py"]


def _mlserver(setup: Setup) -> list[str]:
    return [environments.program("mlserver-files"), "mlserver_app.py"]


OURS = Server("mpserve", THIS_TREE, _mpserve, BINARY)
PEERS = (Server(MLSERVER.name, "mlserver-files", _mlserver, V2), Server(KSERVE.name, "kserve-files", _kserve, BINARY))


@dataclass(frozen=True)
class Rows(Workload):
    """A request for predictions of rows. ``predicted`` are the library's own."""

    predicted: Any = field(default=None, compare=False)

    def check(self, x: Array, headers: Mapping[str, str], answer: bytes) -> None:
        length = int(headers.get("inference-header-content-length", len(answer)))
        output = orjson.loads(answer[:length])["outputs"][0]
        dtype = DTYPES[output["datatype"]]
        data = np.frombuffer(answer[length:], dtype) if length < len(answer) else np.array(output["data"], dtype)
        if data.shape != self.predicted.shape or not np.allclose(data, self.predicted, rtol=1e-6, atol=0):
            raise WrongAnswer(f"{self.title}: expected {self.predicted[:4]}, got {data.shape} {data[:4]}")


def made(folder: Path) -> Iterator[tuple[str, Path, Predict]]:
    """A file of each library, and the library's own way to predict by it, of which the cheaper one if there are two."""
    x, y = make_regression(5000, COLUMNS, n_informative=COLUMNS // 2, random_state=0)
    estimators = LogisticRegression(), RandomForestClassifier(100, max_depth=8, random_state=0)
    for name, estimator in zip(("scikit-learn, linear", "scikit-learn, forest"), estimators, strict=True):
        file = folder / f"{name}.joblib"
        joblib.dump(estimator.fit(x, (y > 0).astype(np.int64)), file)
        yield name, file, estimator.predict

    xgboost.XGBRegressor(n_estimators=100, n_jobs=1).fit(x, y).save_model(folder / "trees.json")
    booster = xgboost.Booster({"nthread": 1}, model_file=folder / "trees.json")
    yield "XGBoost", folder / "trees.json", booster.inplace_predict

    lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, y), 100).save_model(folder / "trees.txt")
    trees = lightgbm.Booster(model_file=folder / "trees.txt")
    yield "LightGBM", folder / "trees.txt", lambda rows: trees.predict(rows, num_threads=1)


def requests(library: str, predict: Predict) -> list[Rows]:
    """Of one row and of many, as JSON and as bytes."""
    found = []
    for rows, connections in CONNECTIONS.items():
        for protocol, words in (("v2", "JSON"), ("binary", "binary")):
            name = f"{library}, {rows:,} row{'s' * (rows > 1)}, {words}"
            one = Rows(name, name, protocol, (rows, COLUMNS), connections)
            found.append(replace(one, predicted=np.asarray(predict(one.x))))
    return found


def alone(workload: Rows, predict: Predict, round_: int, seconds: float) -> Record:
    """What the library takes without a server, on the servers' CPU."""
    x = workload.x
    calls = 0
    os.sched_setaffinity(0, SERVER_CPU)
    try:
        with threadpool_limits(1):
            before, end = time.process_time(), time.monotonic() + seconds
            while time.monotonic() < end:
                predict(x)
                calls += 1
            used = time.process_time() - before
    finally:
        os.sched_setaffinity(0, LOAD_CPU)
    return Record(SECTION, LIBRARY, workload.name, requests=calls, seconds=seconds, cpu_s=used, round=round_)


def costs(servers: list[Server], folder: Path, rounds: int, seconds: int, results: Results) -> None:
    def record(row: Record) -> None:
        results.records.append(row)
        print(report.progress(row), flush=True)

    for library, file, predict in made(folder):
        asked = requests(library, predict)
        with started([(server, {"model": str(file)}) for server in servers], asked[0], record) as running:
            for round_ in range(rounds):
                for workload in asked:
                    record(alone(workload, predict, round_, seconds))
                    for each in running if round_ % 2 == 0 else running[::-1]:
                        if each.server.path(workload) is not None:
                            measure(SECTION, each, workload, workload.connections, round_, seconds, record)


def memory(servers: list[Server], folder: Path, results: Results) -> None:
    """PSS after load, of one server at a time."""
    x, y = make_regression(100_000, COLUMNS, random_state=0)
    forest = RandomForestRegressor(23, max_features=1, random_state=0).fit(x, y)
    file = folder / "forest.joblib"
    joblib.dump(forest, file)
    print(f"a forest of {file.stat().st_size / 1e6:.0f} MB", flush=True)
    one = Rows("memory", "forest", "v2", (100, COLUMNS))
    workload = replace(one, predicted=forest.predict(one.x))
    for workers in WORKERS:
        for server in servers:
            row = Record("memory", server.name, workload.name, workers=workers)
            each = Running(server, set(CPUS), model=str(file), workers=workers)
            try:
                each.wait_until_ready(workload)
                each.settled_pss()
                wrk.drive(each.url(workload), workload, 16, 3)
                row = row._replace(pss_mb=each.settled_pss())
            except (NotServing, WrongAnswer, ValueError) as error:
                row = row._replace(failure=str(error))
            finally:
                each.close()
            results.records.append(row)
            print(report.progress(row), flush=True)


def cost_table(results: Results) -> str:
    """CPU time per request, and what ours is of the better peer's, and of the library's own."""
    names = [OURS.name, *(peer.name for peer in PEERS)]
    lines = []
    for workload in dict.fromkeys(r.workload for r in results.records if r.section == SECTION):
        of = {name: results.select(SECTION, workload=workload, server=name) for name in (LIBRARY, *names)}
        cost = {name: median(r.cpu_ms for r in found) for name, found in of.items() if found}
        better = min((name for name in names[1:] if name in cost), key=cost.__getitem__, default="")
        lines.append([
            workload, *(number(cost.get(name)) for name in (LIBRARY, *names)),
            spread(ratios(of[OURS.name], of.get(better, []))), spread(ratios(of[OURS.name], of[LIBRARY])),
        ])  # fmt: skip
    head = [
        "CPU ms per request",
        "library alone",
        *names,
        "over the better one",
        "over the library",
    ]
    return table(head, lines)


def memory_table(results: Results) -> str:
    lines = []
    for name in (OURS.name, *(peer.name for peer in PEERS)):
        found = [results.value(lambda r: r.pss_mb, "memory", server=name, workers=workers) for workers in WORKERS]
        if None not in found:
            lines.append([name, *map(number, found), number(found[1] / found[0])])  # type: ignore[operator]
    return table(["PSS in MB", *(f"{n} worker{'s' * (n > 1)}" for n in WORKERS), "last over first"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of load for each measurement")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    prepare()
    servers = [OURS, *(peer for peer in PEERS if environments.is_installed(peer.environment))]
    if len(servers) == 1:
        sys.exit(f"no peer is installed in {environments.ROOT}")
    results = Results({SECTION: heading(SECTION, servers, given.rounds, given.seconds)}, [])
    with tempfile.TemporaryDirectory(prefix="mpserve-bench-") as folder:
        costs(servers, Path(folder), given.rounds, given.seconds, results)
        memory(servers, Path(folder), results)
    text = "\n\n".join([report.where(results, (SECTION,)).strip(), cost_table(results), memory_table(results)])
    print(text)
    if given.write:
        DOCUMENT.write_text(report.filled(DOCUMENT.read_text(), {SECTION: text}))


if __name__ == "__main__":
    main()
