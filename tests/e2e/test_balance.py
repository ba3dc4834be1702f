"""Kept-alive connections are spread evenly over the workers, and again after a worker was replaced."""

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.steered import Background, ask_on, kill, let, reached, steered
from tests.running import PATIENCE, Server, eventually, serving

CONNECTIONS, WORKERS = 64, 4
EVEN = CONNECTIONS // WORKERS


@contextlib.contextmanager
def connections(server: Server, count: int = CONNECTIONS) -> Iterator[list[http.client.HTTPConnection]]:
    made = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        for connection in made:
            stack.callback(connection.close)
        yield made


def spread(pids: list[int]) -> list[int]:
    return sorted(Counter(pids).values())


@pytest.mark.parametrize(("loop", "asks_at_once"), [("uvloop", True), ("asyncio", False)])
def test_connections_are_spread_evenly(tmp_path: Path, loop: str, asks_at_once: bool) -> None:
    """Within one of the mean, whether they were idle when the others came or had asked."""
    with steered(tmp_path, f"--event-loop={loop}", workers=WORKERS) as server:
        server.client.close()

        def opened() -> bool:
            with connections(server) as made:
                for connection in made:
                    connection.connect()
                    if asks_at_once:
                        ask_on(connection)
                found = spread([ask_on(connection) for connection in made])
                return len(found) == WORKERS and found[0] >= EVEN - 1 and found[-1] <= EVEN + 1

        eventually(opened)  # on a machine that is held up for longer than a worker's patience, once more


def test_the_successor_of_a_killed_worker_gets_its_share_of_kept_connections_and_no_request_is_lost(
    tmp_path: Path,
) -> None:
    with steered(tmp_path) as server, connections(server) as made:
        victim, survivor = server.workers()
        (tmp_path / "load").unlink()
        kill(victim)
        reached(server, tmp_path, "loading", 3)
        assert {ask_on(connection) for connection in made} == {survivor}
        let(tmp_path, "load")
        server.wait_ready(workers=2)
        eventually(lambda: abs(sum(ask_on(each) == survivor for each in made) - CONNECTIONS // 2) <= 2, every=0)


SLEEPS = """
import os, time
from mpserve import Model

class Sleeps(Model):
    name = "m"

    def predict(self, payload, headers=None):
        time.sleep(0.01)
        return {"predictions": [os.getpid()]}
"""


def test_requests_on_connections_of_their_own_are_spread_evenly(tmp_path: Path) -> None:
    """No worker answers less than half of its share."""
    with serving(tmp_path, SLEEPS, f"--workers={WORKERS}") as server, ThreadPoolExecutor(CONNECTIONS) as clients:
        server.wait_ready(workers=WORKERS)

        def ask(_: int) -> int:
            with connections(server, 1) as [connection]:
                return ask_on(connection)

        def shared() -> bool:
            found = spread(list(clients.map(ask, range(4 * CONNECTIONS))))
            return len(found) == WORKERS and found[0] >= 2 * EVEN

        eventually(shared)  # on a machine that is held up, once more


def test_a_worker_whose_clients_ask_more_gives_some_up_to_one_that_holds_as_many(tmp_path: Path) -> None:
    with serving(tmp_path, SLEEPS, "--workers=2") as server, connections(server) as made:
        one, other = server.wait_ready(workers=2).workers()
        server.client.close()
        busy = [connection for connection in made if ask_on(connection) == one]
        assert len(busy) >= EVEN
        over = threading.Event()
        answered: list[int] = [one] * len(busy)

        def ask_on_and_on(number: int) -> None:
            while not over.is_set():
                answered[number] = ask_on(busy[number])

        traffic = [Background(lambda number=number: ask_on_and_on(number)) for number in range(len(busy))]
        try:
            eventually(lambda: answered.count(other) >= len(busy) // 4)
        finally:
            over.set()
        assert [client.result() for client in traffic] == [None] * len(busy)  # an error: a request was lost
