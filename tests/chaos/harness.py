"""Attacks a real server under load over HTTP and gRPC, and counts what its clients lose.

Every client asks one request after the other, with numbers of its own, and checks each answer. The models write all their answers
into one array, so an answer that is sent too late is another client's. Nothing is asked twice by a client; gRPC repeats a call
by itself that no server has seen, as it does by default.
"""

import contextlib
import math
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

from tests.chaos.clients import KINDS, Kind, Refused
from tests.documents import ROOT
from tests.running import PATIENCE, Server, eventually, free_port, serving

CLIENTS = 4  # of each kind
PAUSE = 0.003  # seconds between two requests of a client
FLOW = 20  # requests of each client before the first round and after each
WORKERS = 2
FLAGS = (f"--workers={WORKERS}", "--enable_grpc=yes", "--grpc_max_connection_age=1")

SOURCE = """
import time
import numpy as np
from mpserve import Tensor, TensorModel

class Double(TensorModel):
    inputs = (Tensor("x", "INT64", (-1,)),)
    outputs = (Tensor("y", "INT64", (-1,)),)
    def load(self):
        self.answers = np.empty(8, np.int64)
        self.ready = True
        return True
    def predict(self, x):
        time.sleep(0.001)
        return np.multiply(x, 2, out=self.answers[:len(x)])

class Served(Double):
    name = "served"

class Other(Double):
    name = "other"

class Streamed(Double):
    name = "streamed"
    def predict(self, x):
        for factor in (2, 3, 4):
            time.sleep(0.001)
            yield np.multiply(x, factor, out=self.answers[:len(x)])

models = [Served, Other, Streamed]
"""

DOCUMENT = ROOT / "docs" / "operate" / "reliability.md"
BEGIN, END = "<!-- written by make chaos -->\n", "<!-- the end of the table -->"


class Target(NamedTuple):
    """A server under attack, the kinds of its clients, and whether its metrics tell the states of its workers.

    ``patience``: seconds in which it must recover.
    """

    server: Server
    grpc_address: str
    folder: Path
    kinds: Sequence[Kind] = tuple(KINDS)
    tells_states: bool = True
    patience: float = PATIENCE

    def workers(self) -> list[int]:
        """Pids of the living workers. multiprocessing's helper, which a peer may have, is none."""
        found = []
        for pid in self.server.workers():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "resource_tracker" not in " ".join(psutil.Process(pid).cmdline()):
                    found.append(pid)
        return found


class Attack(NamedTuple):
    """``strike`` attacks once, and returns when the server has recovered or ended.

    Args:
        ends: the server that was started ends, so each round needs a new one.
        leaves: whether a server is left after the attack. If none is, clients may be refused.
        loses: requests that each client may lose in each round. If any, calls of gRPC wait for a connection: a connection that
            the kernel gives to a dying worker is reset, and gRPC's client would refuse all calls for a second by itself.
        flags: options of the server.
    """

    name: str
    strike: Callable[[Target], object]
    ends: bool = False
    leaves: bool = True
    loses: int = 0
    flags: Sequence[str] = ()


@dataclass
class Row:
    """What the clients of one protocol saw of an attack. ``recovered``: seconds of the slowest round."""

    attack: str
    server: str
    over: str
    rounds: int = 0
    sent: int = 0
    lost: int = 0
    wrong: int = 0
    recovered: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, traffic: "Traffic") -> None:
        self.lost += traffic.count("lost")
        self.wrong += traffic.count("wrong")
        self.sent += sum(map(traffic.count, ("right", "lost", "wrong")))
        self.reasons += traffic.reasons


class Traffic:
    """Clients of one protocol, which ask for as long as the block lasts."""

    def __init__(self, target: Target, kind: Kind, attack: Attack) -> None:
        place = target.server.port, target.grpc_address
        self._clients = [kind(*place, number, waits=attack.loses > 0) for number in range(CLIENTS)]
        self._counts = [Counter[str]() for _ in range(CLIENTS)]
        self._may_refuse = not attack.leaves  # the server may be gone
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]
        self.reasons = Counter[str]()

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for client in self._clients:
            client.close()

    def count(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self._counts)

    def flow(self) -> None:
        """Wait until every client has had some more right answers."""
        before = [counts["right"] for counts in self._counts]
        eventually(lambda: all(c["right"] >= b + FLOW for c, b in zip(self._counts, before, strict=True)))

    def _ask(self, client: int) -> None:
        counts = self._counts[client]
        for number in range(1_000_000):
            if self._over.wait(PAUSE):
                break
            identity = f"{client}-{number}"
            numbers = [client * 1_000_000 + number] * (client % 4 + 1)
            try:
                answer = self._clients[client].ask(identity, numbers)
            except Exception as error:
                if not (isinstance(error, Refused) and self._may_refuse):
                    counts["lost"] += 1
                    self.reasons[f"{type(error).__name__}: {error}"[:200]] += 1
            else:
                expected = [[factor * each for each in numbers] for factor in self._clients[client].factors]
                counts["right" if answer == (identity, expected) else "wrong"] += 1


@contextlib.contextmanager
def target(folder: Path, *more: str) -> Iterator[Target]:
    """A server that is ready to be attacked. Its models are classes, so that a load makes them anew."""
    port = free_port()
    env = {"GUNICORN_CMD_ARGS": f"--pid {folder}/server.pid"}
    slow = "gRPC clients are let go"
    flags = (*FLAGS, f"--grpc_port={port}", *more)
    with serving(folder, SOURCE, *flags, target="model.py:models", env=env, slow_stop=slow) as server:
        server.wait_ready(workers=WORKERS)
        yield Target(server, f"127.0.0.1:{port}", folder)


def settled(target: Target, workers: int = WORKERS, gone: Collection[int] = ()) -> None:
    """Wait until so many workers are there, all are ready, none of those that are to go is left."""

    def is_settled() -> bool:
        found = target.workers()
        if len(found) != workers or set(found) & set(gone):
            return False
        with contextlib.suppress(httpx.TransportError):  # the connection may have been a killed worker's
            states = {"ready": workers, "loading": 0, "draining": 0}
            return not target.tells_states or target.server.states() == states
        return False

    eventually(is_settled, target.patience)


Start = Callable[..., contextlib.AbstractContextManager[Target]]


def attacked(attack: Attack, folder: Path, rounds: int, start: Start = target, name: str = "mpserve") -> list[Row]:
    """Attack so many times, and tell what the clients of each kind saw. A server that is ended is started again."""
    rows: list[Row] = []
    for number in range(rounds if attack.ends else 1):
        own = folder / f"round-{number}"
        own.mkdir()
        with start(own, *attack.flags) as server:
            rows = rows or [Row(attack.name, name, kind.protocol) for kind in server.kinds]
            strikes(attack, server, rows, 1 if attack.ends else rounds)
    return rows


def strikes(attack: Attack, target: Target, rows: list[Row], rounds: int) -> None:
    with contextlib.ExitStack() as clients:
        traffics = [clients.enter_context(Traffic(target, kind, attack)) for kind in target.kinds]
        for _ in range(rounds):
            for traffic in traffics:
                traffic.flow()
            begin = time.monotonic()
            try:
                attack.strike(target)
                seconds = time.monotonic() - begin
            except AssertionError:
                if target.tells_states:  # only mpserve is under test
                    raise
                seconds = math.inf
            for row in rows:
                row.rounds += 1
                row.recovered = max(row.recovered, seconds)
        if attack.leaves:
            for traffic in traffics:
                traffic.flow()
    for row, traffic in zip(rows, traffics, strict=True):
        row.add(traffic)


def report(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Print the rows. Write the table of docs/operate/reliability.md if it has every attack on mpserve."""
    lines = [
        "| Attack | Server | Over | Rounds | Sent | Lost | Wrong | Slowest recovery |", "|---|---|---|---:|---:|---:|---:|---:|",
        *(f"| {row.attack} | {row.server} | {row.over} | {row.rounds} | {row.sent:,} | {row.lost:,} | {row.wrong:,} | "
          f"{f'{row.recovered:.1f} s' if row.recovered < math.inf else 'never'} |" for row in rows),
    ]  # fmt: skip
    print("", *lines, sep="\n")
    if {(row.attack, row.over) for row in rows if row.server == "mpserve"} == {
        (n, k.protocol) for n in names for k in KINDS
    }:
        versions = f"Python {platform.python_version()}, grpcio {version('grpcio')}, {os.cpu_count()} CPUs"
        text = DOCUMENT.read_text()
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(f"{text[:begin]}\n{chr(10).join(lines)}\n\n{versions}.\n{text[end:]}")
