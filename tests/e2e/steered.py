"""A model whose every step waits for the test, and ways to steer it; clients that count what they lose."""

import contextlib
import http.client
import json
import os
import select
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.running import PATIENCE, Server, eventually, serving

SOURCE = """
import os, time
from pathlib import Path
from mpserve import Model

def wait_for(*names):
    while not any(Path(name).exists() for name in names):
        time.sleep(0.01)

class Steered(Model):
    name = "m"
    concurrency = 8  # so that one that waits does not keep the others

    def load(self):
        Path(f"loading-{os.getpid()}").touch()
        wait_for("load", f"load-{os.getpid()}")
        if Path("broken").exists():
            raise RuntimeError("the weights are broken")
        self.ready = True
        return True

    def predict(self, payload, headers=None):
        what = payload["instances"][0]
        if what == "wait":
            Path(f"waiting-{os.getpid()}").touch()
            wait_for("release")
        if what == "retire":
            self.ready = False
        return {"predictions": [os.getpid()]}

    def stop(self):
        Path(f"stopped-{os.getpid()}").touch()
"""

PATH = "/v1/models/m:predict"
HOOKS = """
def worker_exit(server, worker):
    open(f"exited-{worker.pid}", "w").close()
"""


@contextlib.contextmanager
def steered(
    folder: Path, *flags: str, workers: int = 2, source: str = SOURCE, gunicorn: str = "", **more: Any
) -> Iterator[Server]:
    """A server of the model, ready; a worker that comes to its end by itself says so."""
    (folder / "hooks.py").write_text(HOOKS)
    let(folder, "load")
    env = {"GUNICORN_CMD_ARGS": f"-c hooks.py {gunicorn}", **more.pop("env", {})}
    with serving(folder, source, f"--workers={workers}", *flags, env=env, **more) as server:
        yield server.wait_ready(workers=workers)


def body(what: Any = "pid") -> bytes:
    return json.dumps({"instances": [what]}).encode()


def pids(folder: Path, stage: str) -> set[int]:
    """Workers that have reached a stage: ``loading``, ``waiting``, ``stopped``, ``exited``."""
    return {int(path.name.rpartition("-")[2]) for path in folder.glob(f"{stage}-*")}


def reached(server: Server, folder: Path, stage: str, workers: int = 1) -> set[int]:
    """The workers that have reached a stage, once they are so many."""

    def enough() -> set[int]:
        found = pids(folder, stage)
        if len(found) < workers:
            server.check_alive()
            return set()
        return found

    found: set[int] = eventually(enough)
    return found


def let(folder: Path, what: str, pid: int | None = None) -> None:
    """Let all workers (or the one) go on: ``load`` or ``release``."""
    (folder / (what if pid is None else f"{what}-{pid}")).touch()


def ask(server: Server, what: str = "pid") -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(f"{server.url}{PATH}", content=body(what), timeout=PATIENCE, verify=False)


def pids_of(server: Server, requests: int = 20) -> set[int]:
    """Who answers so many requests, all of which are answered with 200."""
    return {ask(server).raise_for_status().json()["predictions"][0] for _ in range(requests)}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


class Background:
    """A function in a thread; ``result()`` is what it returned, or raised."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._function()
        except Exception as error:
            self._result = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert self.done(), "no answer"
        return self._result


def waiting_request(server: Server, folder: Path) -> Background:
    """A request that is being answered by now, and will be answered after ``let(folder, "release")``."""
    before = pids(folder, "waiting")
    request = Background(lambda: ask(server, "wait"))
    eventually(lambda: pids(folder, "waiting") - before)
    return request


@contextlib.contextmanager
def pinned(server: Server, among: set[int]) -> Iterator[dict[int, http.client.HTTPConnection]]:
    """A kept-alive connection to each of these workers."""
    found: dict[int, http.client.HTTPConnection] = {}
    with contextlib.ExitStack() as open_connections:

        def one_more() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
            open_connections.callback(connection.close)
            found.setdefault(ask_on(connection), connection)
            return found.keys() >= among

        eventually(one_more)
        yield {pid: found[pid] for pid in among}


def ask_on(connection: http.client.HTTPConnection, what: Any = "pid") -> int:
    connection.request("POST", PATH, body(what))
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    pid: int = answer["predictions"][0]
    return pid


class Loss(NamedTuple):
    """A request that was not answered with 200. ``pid``: who answered last on its connection, None if it was new."""

    client: int
    pid: int | None
    error: str


class Traffic:
    """Clients that ask one request after the other for as long as the block lasts, and note each that is lost.

    Half of them keep their connection for as long as the server lets them, half open one for each request. Nothing is
    asked twice.
    """

    def __init__(self, server: Server, clients: int = 4, what: Any = "pid") -> None:
        self.server = server
        self._what = what
        self.losses: list[Loss] = []
        self.answers: Counter[int] = Counter()
        self._over = threading.Event()
        self._counts = [0] * clients

    def __enter__(self) -> "Traffic":
        self._clients = [
            Background(lambda number=number: self._ask(number, number % 2 == 0)) for number in range(len(self._counts))
        ]
        self.flow()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for client in self._clients:
            client.result()

    def flow(self, requests: int = 10) -> None:
        """Wait until every client has finished so many requests more."""
        before = list(self._counts)
        eventually(lambda: all(now - then >= requests for now, then in zip(self._counts, before, strict=True)))

    def _ask(self, number: int, keep_alive: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE)
        last: int | None = None
        while not self._over.wait(0.005):
            # A server may close an idle connection at any time, and a client must look before it sends (RFC 9112, 9.5).
            if not keep_alive or connection.sock is None or select.select([connection.sock], [], [], 0)[0]:
                connection.close()
                last = None
            try:
                last = ask_on(connection, self._what)
                self.answers[last] += 1
            except Exception as error:
                connection.close()
                self.losses.append(Loss(number, last, repr(error)))
            self._counts[number] += 1
        connection.close()
