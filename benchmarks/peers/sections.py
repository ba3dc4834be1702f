"""The three parts of a run. In each, servers take turns: every one is measured before any is measured again.

The servers of a part run side by side on one CPU, all idle but the one that is asked; the load comes from another CPU. So
a machine that slows down meanwhile slows all of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from benchmarks.peers import servers, wrk
from benchmarks.peers.processes import NotServing, Running
from benchmarks.peers.results import Record
from benchmarks.peers.servers import Server
from benchmarks.peers.workloads import IDENTITY, LOADS, MLP, SMALL, Workload, WrongAnswer

MATES, EACH = 32, 8
"""Clients that ask for different things at the same moment, before batching is measured; and how often each does."""
WORKERS, MEGABYTES = (1, 2, 4), 200
BATCH = 32

CPUS = sorted(os.sched_getaffinity(0))
SERVER_CPU, LOAD_CPU = {CPUS[0]}, {CPUS[-1]}

Recorder = Callable[[Record], None]


def prepare() -> None:
    """Take this process, and the load that it starts, off the servers' CPU.

    Raises:
        SystemExit: there is only one CPU, or no wrk.
    """
    if SERVER_CPU == LOAD_CPU:
        sys.exit("two CPUs are needed: one for the servers, one for the load")
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    os.sched_setaffinity(0, LOAD_CPU)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the servers are ended too


def identity(chosen: Iterable[Server], rounds: int, seconds: int, record: Recorder) -> None:
    """Every workload of the identity, and the small one at several numbers of connections."""
    points = [(workload, workload.connections) for workload in IDENTITY]
    points += [(SMALL, connections) for connections in LOADS if connections != SMALL.connections]
    with started([(server, {}) for server in chosen], SMALL, record) as running:
        for number in range(rounds):
            for workload, connections in points:
                for each in _turn(running, number):
                    if _is_asked(each.server, workload, connections):
                        measure("identity", each, workload, connections, number, seconds, record)


def mlp(chosen: Iterable[Server], rounds: int, seconds: int, record: Recorder) -> None:
    """The torch model, one request at a time and in batches."""
    wanted = [server for server in chosen if server not in (servers.RAW, servers.ASYNC)]
    setups: list[tuple[Server, dict[str, Any]]] = [(server, {"model": "mlp"}) for server in wanted]
    setups += [(server, {"model": "mlp", "batch": BATCH}) for server in wanted if server.batches]
    with started(setups, MLP, record) as running:
        for each in list(running):
            try:
                ask_together(each, MLP)
            except (NotServing, WrongAnswer) as error:
                running.remove(each)
                record(Record("mlp", each.server.name, MLP.name, batch=each.setup.batch, failure=str(error)))
        for number in range(rounds):
            for each in _turn(running, number):
                measure("mlp", each, MLP, MLP.connections, number, seconds, record)


def memory(chosen: Iterable[Server], rounds: int, seconds: int, record: Recorder) -> None:
    """PSS with weights, after load, by the number of workers. One server at a time, since they would share libraries."""
    for workers in WORKERS:
        for server in chosen:
            if not server.scales or server is servers.ASYNC:
                continue
            each = Running(server, set(CPUS), workers=workers, megabytes=MEGABYTES)
            try:
                each.wait_until_ready(SMALL)
                each.settled_pss()
                load = wrk.drive(each.url(SMALL), SMALL, 16, seconds)
                pss = each.settled_pss()
                record(
                    Record("memory", server.name, SMALL.name, workers=workers, pss_mb=round(pss, 1), **load._asdict())
                )
            except (NotServing, WrongAnswer, ValueError) as error:
                record(Record("memory", server.name, SMALL.name, workers=workers, failure=str(error)))
            finally:
                each.close()


def measure(
    section: str, each: Running, workload: Workload, connections: int, number: int, seconds: int, record: Recorder
) -> None:
    """Check an answer, then drive the server and record CPU time, throughput, latency and errors."""
    seconds *= 3 if workload.is_slow else 1
    row = partial(
        Record, section, each.server.name, workload.name, connections=connections, batch=each.setup.batch, round=number
    )
    try:
        if number == 0 and connections == workload.connections:
            wrk.drive(each.url(workload), workload, connections, 1)  # to warm up
        each.ask(workload)  # and what was under way is done when this is answered
        before = each.cpu_seconds()
        load = wrk.drive(each.url(workload), workload, connections, seconds)
        used = each.cpu_seconds() - before
        record(row(cpu_s=round(used, 2), **load._asdict()))
    except (NotServing, WrongAnswer, ValueError) as error:
        record(row(failure=str(error)))


def ask_together(each: Running, workload: Workload) -> None:
    """Ask for different rows at the same moment, so that a batch that mixes them up is seen.

    Raises:
        WrongAnswer: a client got another one's rows, or none that the model makes.
    """

    def client(number: int) -> None:
        for turn in range(EACH):
            each.ask(workload, workload.other_x(1000 * number + turn))

    with ThreadPoolExecutor(MATES) as clients:
        list(clients.map(client, range(MATES)))


@contextmanager
def started(
    setups: Iterable[tuple[Server, Mapping[str, Any]]], workload: Workload, record: Recorder
) -> Iterator[list[Running]]:
    """Those of the servers that could be started. The others are recorded as failed."""
    with ExitStack() as stack:
        running = []
        for server, setup in setups:
            running.append(Running(server, SERVER_CPU, **setup))
            stack.callback(running[-1].close)
        for each in list(running):
            try:
                each.wait_until_ready(workload)
            except (NotServing, WrongAnswer) as error:
                running.remove(each)
                row = Record(workload.model, each.server.name, workload.name, batch=each.setup.batch)
                record(row._replace(failure=str(error)))
        yield running


def _turn(running: list[Running], number: int) -> list[Running]:
    """The other way round in every second round, so that none is always the first after a pause."""
    return running if number % 2 == 0 else running[::-1]


def _is_asked(server: Server, workload: Workload, connections: int) -> bool:
    if server is servers.ASYNC:
        return workload is SMALL and connections == SMALL.connections
    return server.path(workload) is not None and not (server is servers.RAW and connections not in (16, 4))


SECTIONS = {"identity": identity, "mlp": mlp, "memory": memory}
