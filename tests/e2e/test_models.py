"""Models as users write them, each served by real workers: what is shared, what runs where, and the same numbers in V1 and V2."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.running import Server, eventually, free_port, running

MODELS = Path(__file__).parents[1] / "models"


@contextmanager
def serving_target(folder: Path, target: object, *flags: str) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "serve", str(target), f"--http_port={port}", *flags]
    with running(command, folder, port) as server:
        yield server


def answers(server: Server, workers: int) -> dict[int, list[Any]]:
    """The last answer of each worker, by its pid, once each has answered."""
    found: dict[int, list[Any]] = {}

    def ask() -> bool:
        response = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": [0]}, timeout=30, verify=False)
        pid, *rest = response.json()["predictions"]
        found[pid] = rest
        return len(found) == workers

    eventually(ask, every=0)
    return found


def test_a_model_that_holds_what_cannot_be_pickled_serves_from_four_workers(tmp_path: Path) -> None:
    with serving_target(tmp_path, MODELS / "held.py", "--workers=4") as server:
        server.wait_ready(workers=4)
        found = answers(server, 4)
        assert set(found) == set(server.workers())
        assert {(double, readable) for double, _, readable in found.values()} == {(42, True)}


def test_each_moment_of_a_models_life_runs_in_its_process_and_what_preload_left_is_shared(tmp_path: Path) -> None:
    with serving_target(tmp_path, MODELS / "moments.py", "--workers=2") as server:
        server.wait_ready(workers=2)
        found = answers(server, 2)
        weights = {address for _, address in found.values()}
        assert len(weights) == 1, "one object at one address, in all workers"
        for pid, (ran, _) in found.items():
            assert ran == {"constructor": server.pid, "preload": server.pid, "load": pid, "first predict": -1}
        explained = server.client.post("/v1/models/m:explain", json={"instances": [1, 2]})
        assert explained.json() == {"explanations": [1, 2]}
