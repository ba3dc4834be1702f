"""Models as users write them, each served by real workers: what is shared, what runs where, and the same numbers in V1 and V2."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.running import Server, eventually, free_port, running, serving

MODELS = Path(__file__).parents[1] / "models"
REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "examples/digits"


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
        response = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": [0]}, timeout=30)
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


V1 = {"instances": [{"x": [1.0, 2.0], "offset": 10}, {"x": [3.0, 4.0], "offset": 20}]}
V2 = {
    "id": "one",
    "inputs": [
        {"name": "offset", "datatype": "INT64", "shape": [2], "data": [10, 20]},
        {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]},
    ],
}


@pytest.mark.parametrize("file", ["affine_numpy.py", "affine_torch.py"])
def test_a_tensor_model_answers_the_same_numbers_in_v1_and_v2(tmp_path: Path, file: str) -> None:
    with serving_target(tmp_path, MODELS / file) as server:
        server.wait_ready(workers=1)
        rows = [{"y": [12.0, 14.0], "total": 26.0}, {"y": [26.0, 28.0], "total": 54.0}]
        assert server.client.post("/v1/models/affine:predict", json=V1).json() == {"predictions": rows}
        answer = server.client.post("/v2/models/affine/infer", json=V2).json()
        assert (answer["model_name"], answer["id"]) == ("affine", "one")
        assert answer["outputs"] == [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [12.0, 14.0, 26.0, 28.0]},
            {"name": "total", "datatype": "FP32", "shape": [2], "data": [26.0, 54.0]},
        ]
        described = server.client.get("/v2/models/affine").json()
        assert described["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        wrong = server.client.post("/v1/models/affine:predict", json={"instances": [{"x": [1.0], "offset": 1}]})
        assert wrong.status_code == 400
        assert "expected shape [-1, 2], got [1, 1]" in wrong.json()["error"]


def test_a_pair_of_functions_serves_scikit_learn(tmp_path: Path) -> None:
    with serving_target(tmp_path, MODELS / "iris.py", "--workers=2") as server:
        server.wait_ready(workers=2)
        flowers = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
        assert server.predict("iris", flowers).json() == {"predictions": [0, 2]}
        tensor = {"name": "rows", "datatype": "FP64", "shape": [2, 4], "data": flowers}
        answer = server.client.post("/v2/models/iris/infer", json={"inputs": [tensor]}).json()
        assert answer["outputs"][0]["data"] == [0, 2]


NAMES = """
from mpserve import Model

class Named(Model):
    def predict(self, payload, headers=None):
        return {"predictions": [self.name]}

class OnClass(Named):
    name = "on-class"

class OnInstance(Named):
    def __init__(self, name):
        super().__init__(name)

models = [OnClass, OnInstance("on-instance"), Named("third")]
"""


def test_names_come_from_the_class_or_from_the_instance(tmp_path: Path) -> None:
    with serving(tmp_path, NAMES, target="model.py:models") as server:
        server.wait_ready()
        names = ["on-class", "on-instance", "third"]
        assert server.client.get("/v2/models").json() == {"models": names}
        for name in names:
            assert server.predict(name, []).json() == {"predictions": [name]}
            assert server.client.get(f"/v2/models/{name}/ready").status_code == 200


@pytest.mark.parametrize(("target", "name"), [("model.py:OnClass", "renamed"), ("model.py:OnInstance", "with/a/slash")])
def test_model_name_renames_a_single_model(tmp_path: Path, target: str, name: str) -> None:
    with serving(tmp_path, NAMES, f"--model_name={name}", target=target) as server:
        server.wait_ready()
        assert server.predict(quote(name, safe=""), []).json() == {"predictions": [name]}


TOGETHER = """
import threading
from mpserve import Model

class Together(Model):
    name = "m"
    concurrency = 3
    def load(self):
        self.barrier = threading.Barrier(3)
    def predict(self, payload, headers=None):
        return {"predictions": [self.barrier.wait(30)]}
"""


def test_concurrency_lets_that_many_predicts_run_at_once_in_a_worker(tmp_path: Path) -> None:
    """Each of the three waits for the two others, so one after another would never end."""
    with serving(tmp_path, TOGETHER) as server:
        server.wait_ready()
        places: list[int] = []

        def ask() -> None:
            response = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": []}, timeout=40)
            places.append(response.json()["predictions"][0])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
        assert sorted(places) == [0, 1, 2]


WARM = """
import time
from pathlib import Path
from mpserve import Model

class Warm(Model):
    name = "m"
    def warmup(self):
        Path("warming").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        self.warm = True
    def predict(self, payload, headers=None):
        return {"predictions": [self.warm]}
"""


def test_nothing_listens_before_the_warm_up_has_ended(tmp_path: Path) -> None:
    with serving(tmp_path, WARM) as server:
        eventually((tmp_path / "warming").exists)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/v2/health/live")
        (tmp_path / "go").touch()
        server.wait_ready()
        assert server.predict("m", []).json() == {"predictions": [True]}


ASYNC_FUNCTIONS = """
import asyncio

async def predict(rows):
    await asyncio.sleep(0)
    return rows * 2
"""


LATE = """
import threading, time
from pathlib import Path
from mpserve import Model

class Named(Model):
    def predict(self, payload, headers=None):
        return {"predictions": [self.name]}

class Late(Named):
    def load(self):
        threading.Thread(target=self.fill).start()

    def fill(self):
        while not Path("filled").exists():
            time.sleep(0.01)
        self.ready = True

models = [Late("late"), Named("other")]
"""


def test_a_model_that_still_loads_in_its_own_thread_is_not_ready_while_the_other_serves(tmp_path: Path) -> None:
    with serving(tmp_path, LATE, "--workers=2", target="model.py:models") as server:
        eventually(lambda: server.log.count("worker ready") == 2)
        assert (server.predict("late", [0]).status_code, server.predict("other", [0]).status_code) == (503, 200)
        assert server.client.get("/v2/health/ready").status_code == 503
        (tmp_path / "filled").touch()
        server.wait_ready()
        assert server.predict("late", [0]).json() == {"predictions": ["late"]}


def test_an_async_function_serves(tmp_path: Path) -> None:
    with serving(tmp_path, ASYNC_FUNCTIONS, "--model_name=m") as server:
        server.wait_ready()
        assert server.predict("m", [1, 2]).json() == {"predictions": [2, 4]}


def test_the_example_serves_as_it_is_written_there(tmp_path: Path) -> None:
    with serving_target(tmp_path, f"{DIGITS / 'model.py'}:Digits", "--workers=2") as server:
        server.wait_ready(workers=2)
        v1 = server.client.post(
            "/v1/models/digits:predict", json=json.loads((DIGITS / "request_v1.json").read_text())
        ).json()
        v2 = server.client.post(
            "/v2/models/digits/infer", json=json.loads((DIGITS / "request_v2.json").read_text())
        ).json()
        assert [row["digit"] for row in v1["predictions"]] == [7]
        digit, probability = v2["outputs"]
        assert digit["data"] == [7]
        assert probability["data"] == pytest.approx([row["probability"] for row in v1["predictions"]])
