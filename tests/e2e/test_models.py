"""Models as users write them, each served by real workers: what is shared, and what runs where."""

from pathlib import Path
from typing import Any

import httpx

from tests.e2e.workers import of_each_worker, predictions_of_each_worker
from tests.running import serving

MODELS = Path(__file__).parents[1] / "models"


def test_a_model_that_holds_what_cannot_be_pickled_serves_from_four_workers(tmp_path: Path) -> None:
    with serving(tmp_path, (MODELS / "held.py").read_text(), "--workers=4") as server:
        server.wait_ready(workers=4)

        def ask(client: httpx.Client) -> tuple[int, Any]:
            answer = client.post("/v1/models/m:predict", json={"instances": []})
            pid, double, _, readable = answer.json()["predictions"]
            return pid, (double, readable)

        assert list(of_each_worker(server, ask).values()) == [(42, True)] * 4


def test_each_moment_of_a_models_life_runs_in_its_process_and_what_preload_left_is_shared(tmp_path: Path) -> None:
    with serving(tmp_path, (MODELS / "moments.py").read_text(), "--workers=2") as server:
        found = predictions_of_each_worker(server.wait_ready(workers=2))
        assert len({address for _, address in found.values()}) == 1, "one object at one address, in all workers"
        for pid, (ran, _) in found.items():
            assert ran == {"constructor": server.pid, "preload": server.pid, "load": pid, "first predict": -1}
        explained = server.client.post("/v1/models/m:explain", json={"instances": [1, 2]})
        assert explained.json() == {"explanations": [1, 2]}
