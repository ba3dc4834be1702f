"""Attacks a real server under load over HTTP and gRPC, and counts what its clients lose.

Every client asks one request after the other, with numbers of its own, and checks each answer. The model writes all its answers
into one array, so an answer that is sent too late is another client's. Nothing is asked twice by a client; gRPC repeats a call
by itself that no server has seen, as it does by default.
"""

import contextlib
import http.client
import json
import os
import platform
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.documents import ROOT
from tests.running import PATIENCE, Server, eventually, free_port, serving

CLIENTS = 6  # over each of HTTP and gRPC
PAUSE = 0.003  # seconds between two requests of a client
FLOW = 20  # requests of each client before the first round and after each
WORKERS = 2

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

models = [Served, Other]
"""

DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make chaos -->\n", "<!-- the end of the table -->"


class Target(NamedTuple):
    """A server under attack."""

    server: Server
    grpc_address: str
    folder: Path


class Attack(NamedTuple):
    """``strike`` attacks once, and returns when the server has recovered or ended.

    Args:
        ends: the server that was started ends, so each round needs a new one.
        leaves: whether a server is left after the attack. If none is, clients may be refused.
        loses: requests that each client may lose in each round.
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


class Refused(Exception):
    """Nobody listens, so the request was not sent."""


class HttpClient:
    """Asks over HTTP, on one connection for as long as the server lets it, or on a new one for each request."""

    protocol = "HTTP"

    def __init__(self, target: Target, number: int) -> None:
        self._keeps = number % 2 == 0
        self._connection = http.client.HTTPConnection("127.0.0.1", target.server.port, timeout=PATIENCE)

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, list[int]]:
        """The id and the numbers of the answer."""
        connection = self._connection
        # A server may close an idle connection at any time, and a client must look before it sends (RFC 9112, 9.5).
        if not self._keeps or (connection.sock is not None and select.select([connection.sock], [], [], 0)[0]):
            connection.close()
        try:
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError as error:
                    raise Refused(str(error)) from error
            tensor = {"name": "x", "shape": [len(numbers)], "datatype": "INT64", "data": numbers}
            connection.request("POST", "/v2/models/served/infer", json.dumps({"id": identity, "inputs": [tensor]}))
            response = connection.getresponse()
            body = response.read()
        except Exception:
            connection.close()
            raise
        if response.status != 200:
            raise RuntimeError(f"{response.status} {body.decode()}")
        answer = json.loads(body)
        return answer["id"], answer["outputs"][0]["data"]

    def close(self) -> None:
        self._connection.close()


class GrpcClient:
    """Asks over gRPC, on a channel of its own."""

    protocol = "gRPC"

    def __init__(self, target: Target, number: int) -> None:
        # Channels to one address share a connection otherwise.
        self._channel = grpc.insecure_channel(target.grpc_address, [("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )

    def ask(self, identity: str, numbers: list[int]) -> tuple[str, list[int]]:
        message = pb.ModelInferRequest(model_name="served", id=identity)
        message.inputs.add(name="x", datatype="INT64", shape=[len(numbers)]).contents.int64_contents.extend(numbers)
        try:
            answer = self._call(message, timeout=PATIENCE)
        except grpc.RpcError as error:
            # Said of a call for which there was no connection. gRPC says it of every call until it tries to connect again.
            if (error.details() or "").startswith("failed to connect to all addresses"):
                raise Refused(error.details()) from error
            raise RuntimeError(f"{error.code().name} {error.details()}") from error
        return answer.id, list(answer.outputs[0].contents.int64_contents)

    def close(self) -> None:
        self._channel.close()


KINDS: list[type[HttpClient] | type[GrpcClient]] = [HttpClient, GrpcClient]


class Traffic:
    """Clients of one protocol, which ask for as long as the block lasts. ``may_refuse``: whether the server may be gone."""

    def __init__(self, target: Target, kind: type[HttpClient] | type[GrpcClient], may_refuse: bool) -> None:
        self._clients = [kind(target, number) for number in range(CLIENTS)]
        self._counts = [Counter[str]() for _ in range(CLIENTS)]
        self._may_refuse = may_refuse
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
                counts["right" if answer == (identity, [2 * each for each in numbers]) else "wrong"] += 1


@contextlib.contextmanager
def target(folder: Path, *more: str) -> Iterator[Target]:
    """A server that is ready to be attacked. Its models are classes, so that a load makes them anew."""
    port = free_port()
    flags = (f"--workers={WORKERS}", "--enable_grpc=yes", f"--grpc_port={port}", *more)
    env = {"GUNICORN_CMD_ARGS": f"--pid {folder}/server.pid"}
    with serving(folder, SOURCE, *flags, target="model.py:models", env=env) as server:
        server.wait_ready(workers=WORKERS)
        yield Target(server, f"127.0.0.1:{port}", folder)


def settled(target: Target, workers: int = WORKERS, gone: Collection[int] = ()) -> None:
    """Wait until so many workers are there, all are ready, none of those that are to go is left."""

    def is_settled() -> bool:
        found = target.server.workers()
        with contextlib.suppress(httpx.TransportError):  # the connection may have been a killed worker's
            states = {"ready": workers, "loading": 0, "draining": 0}
            return len(found) == workers and not set(found) & set(gone) and target.server.states() == states
        return False

    eventually(is_settled)


def attacked(attack: Attack, folder: Path, rounds: int) -> list[Row]:
    """Attack so many times, and tell what the clients of each protocol saw. A server that is ended is started again."""
    rows = [Row(attack.name, kind.protocol) for kind in KINDS]
    for number in range(rounds if attack.ends else 1):
        own = folder / f"round-{number}"
        own.mkdir()
        with target(own, *attack.flags) as server:
            strikes(attack, server, rows, 1 if attack.ends else rounds)
    return rows


def strikes(attack: Attack, target: Target, rows: list[Row], rounds: int) -> None:
    with contextlib.ExitStack() as clients:
        traffics = [clients.enter_context(Traffic(target, kind, may_refuse=not attack.leaves)) for kind in KINDS]
        for _ in range(rounds):
            for traffic in traffics:
                traffic.flow()
            begin = time.monotonic()
            attack.strike(target)
            for row in rows:
                row.rounds += 1
                row.recovered = max(row.recovered, time.monotonic() - begin)
        if attack.leaves:
            for traffic in traffics:
                traffic.flow()
    for row, traffic in zip(rows, traffics, strict=True):
        row.add(traffic)


def report(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Print the rows. Write the table of docs/reliability.md if it is complete."""
    lines = [
        "| Attack | Over | Rounds | Sent | Lost | Wrong | Slowest recovery |", "|---|---|---:|---:|---:|---:|---:|",
        *(f"| {row.attack} | {row.over} | {row.rounds} | {row.sent:,} | {row.lost:,} | {row.wrong:,} | {row.recovered:.1f} s |"
          for row in rows),
    ]  # fmt: skip
    print("", *lines, sep="\n")
    if [row.attack for row in rows] == [name for name in names for _ in KINDS]:
        versions = f"Python {platform.python_version()}, grpcio {version('grpcio')}, {os.cpu_count()} CPUs"
        text = DOCUMENT.read_text()
        begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        DOCUMENT.write_text(f"{text[:begin]}\n{chr(10).join(lines)}\n\n{versions}.\n{text[end:]}")
