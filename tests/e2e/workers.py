"""Asking every worker of a server, and killing one."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx

from tests.running import PATIENCE, Server, eventually


def of_each_worker(server: Server, ask: Callable[[httpx.Client], tuple[int, Any]]) -> dict[int, Any]:
    """What each worker answers, by its pid. ``ask`` is given a connection of its own, and tells who answered, and what.

    The connections stay open, so that no worker gets all of them. A worker that is asked twice must say the same.
    """
    found: dict[int, Any] = {}
    with ExitStack() as held:
        for _ in range(100):
            client = held.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE, verify=False))
            pid, told = ask(client)
            assert found.setdefault(pid, told) == told
            if len(found) == len(server.workers()):
                break
    assert set(found) == set(server.workers())
    return found


def predictions_of_each_worker(server: Server, model: str = "m") -> dict[int, list[Any]]:
    """What a model answers that predicts its pid, and more."""

    def ask(client: httpx.Client) -> tuple[int, list[Any]]:
        pid, *more = client.post(f"/v1/models/{model}:predict", json={"instances": [0]}).json()["predictions"]
        return pid, more

    return of_each_worker(server, ask)


def kill_and_await_successor(server: Server, victim: int) -> None:
    workers = len(server.workers())
    os.kill(victim, signal.SIGKILL)
    await_successor(server, victim, workers)


def await_successor(server: Server, victim: int, workers: int) -> None:
    """The dead worker counts as ready until the arbiter has seen its end, so first its successor must be there."""
    eventually(lambda: victim not in server.workers() and len(server.workers()) == workers)
    eventually(lambda: server.states().get("ready") == workers)
