"""Load and unload, asked of one worker, true of all; each test with several workers, each asked on a fresh connection."""

import contextlib
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.workers import await_successor, kill_and_await_successor, of_each_worker, predictions_of_each_worker
from tests.running import PATIENCE, Server, eventually, serving

WORKERS = 4
SERVED, UNKNOWN = {200}, {404}

MAIN = """
import os
from mpserve import Model

class Pid(Model):
    name = "pid"
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid()]}
"""

TAGGED = """
import os
from pathlib import Path
from mpserve import Model

class Tagged(Model):
    def load(self):
        self.tag = (Path(__file__).parent / "tag").read_text()
        if self.tag == "broken in one":
            try:
                os.close(os.open("first", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            raise ValueError("no memory in this one")
        if self.tag == "killer":
            os._exit(9)
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), self.tag]}
    def stop(self):
        with open("stops", "a") as file:
            file.write(f"{os.getpid()} {self.tag}\\n")
"""


@pytest.fixture(name="server")
def server_of_models_to_load(tmp_path: Path) -> Iterator[Server]:
    """Models b to e lie there, to be loaded by name."""
    for name in "bcde":
        tag(tmp_path, "one", name)
        (tmp_path / "models" / name / "model.py").write_text(TAGGED)
    with serving(tmp_path, MAIN, f"--workers={WORKERS}", "--model_dir=models") as server:
        yield server.wait_ready(workers=WORKERS)


def tag(folder: Path, text: str, name: str = "b") -> None:
    (folder / "models" / name).mkdir(parents=True, exist_ok=True)
    (folder / "models" / name / "tag").write_text(text)


def post(server: Server, path: str, body: Any = None) -> httpx.Response:
    content = b"" if body is None else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, timeout=PATIENCE, verify=False)


def change(server: Server, verb: str, name: str = "b") -> httpx.Response:
    return post(server, f"/v2/repository/models/{name}/{verb}")


def readiness(server: Server, name: str = "b") -> set[int]:
    """The statuses that the workers answer with when they are asked whether the model is ready."""

    def ask(client: httpx.Client) -> tuple[int, int]:
        pid = client.post("/v1/models/pid:predict", json={"instances": []}).json()["predictions"][0]
        return pid, client.get(f"/v2/models/{name}/ready").status_code  # the connection stays with its worker

    return set(of_each_worker(server, ask).values())


def tags(server: Server) -> set[str]:
    return {text for [text] in predictions_of_each_worker(server, "b").values()}


@contextlib.contextmanager
def traffic(server: Server, model: str, clients: int = 3) -> Iterator[Counter[int | str]]:
    """Ask the model without a pause as long as the block runs; how often there was each status, or no answer ("lost")."""
    outcomes: Counter[int | str] = Counter()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                outcomes[post(server, f"/v1/models/{model}:predict", {"instances": []}).status_code] += 1
            except httpx.TransportError:
                outcomes["lost"] += 1

    with ThreadPoolExecutor(clients) as pool:
        asking = [pool.submit(ask) for _ in range(clients)]
        try:
            yield outcomes
        finally:
            over.set()
        for client in asking:
            client.result()


def test_after_the_answer_every_worker_agrees_and_another_model_has_lost_no_request(
    server: Server, tmp_path: Path
) -> None:
    with traffic(server, "pid") as outcomes:
        for _ in range(3):
            assert change(server, "load").json() == {"name": "b", "load": True}
            assert readiness(server) == SERVED
            assert change(server, "unload").json() == {"name": "b", "unload": True}
            assert readiness(server) == UNKNOWN
    assert set(outcomes) == {200}
    assert len((tmp_path / "stops").read_text().splitlines()) == 3 * WORKERS


def test_a_model_loaded_anew_is_the_new_one_in_every_worker_and_loses_no_request(
    server: Server, tmp_path: Path
) -> None:
    change(server, "load").raise_for_status()
    assert tags(server) == {"one"}
    with traffic(server, "b", clients=1) as outcomes:
        for text in ("two", "three"):
            tag(tmp_path, text)
            change(server, "load").raise_for_status()
            assert tags(server) == {text}
    assert set(outcomes) == {200}


def test_a_killed_worker_returns_with_the_same_set_and_only_what_it_held_is_lost(server: Server) -> None:
    with traffic(server, "pid", clients=3) as outcomes:
        for verb, expected in (("load", SERVED), ("unload", UNKNOWN)):
            change(server, verb).raise_for_status()
            kill_and_await_successor(server, server.workers()[0])
            assert readiness(server) == expected
    assert set(outcomes) <= {200, "lost"}
    assert outcomes["lost"] <= 2 * 3  # of each of two workers at most one request per client


def test_a_load_that_fails_in_one_worker_says_why_and_changes_nothing(server: Server, tmp_path: Path) -> None:
    change(server, "load").raise_for_status()
    tag(tmp_path, "broken in one")
    answer = change(server, "load")
    assert answer.status_code == 500
    assert ": load() of model b failed: ValueError: no memory in this one" in answer.json()["error"]
    assert tags(server) == {"one"}
    tag(tmp_path, "two")
    change(server, "load").raise_for_status()
    assert tags(server) == {"two"}


def test_a_load_that_kills_its_workers_is_tried_once_by_each_at_most(server: Server, tmp_path: Path) -> None:
    tag(tmp_path, "killer")
    with pytest.raises(httpx.TransportError):  # who was asked died as well
        change(server, "load")

    def is_over() -> bool:
        try:
            return server.states().get("ready") == WORKERS and readiness(server) == UNKNOWN
        except (httpx.TransportError, AssertionError, KeyError):  # one more has died, or is not ready again
            return False

    eventually(is_over)
    assert 1 <= server.metric("mpserve_worker_restarts_total") <= WORKERS
    assert "loading again in 2 s" not in server.log
    tag(tmp_path, "mended")

    def is_loaded() -> bool:
        try:
            return change(server, "load").status_code == 200
        except httpx.TransportError:  # a worker that died counts as ready until the arbiter has seen its end
            return False

    eventually(is_loaded)
    assert tags(server) == {"mended"}


def test_loads_asked_of_several_workers_at_once_all_come_true(server: Server) -> None:
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda name: change(server, "load", name), "bcde"))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert [readiness(server, name) for name in "bcde"] == [SERVED] * 4


def test_a_respawn_in_the_midst_of_loads_ends_in_agreement(server: Server) -> None:
    for (verb, expected), victim in itertools.product({"load": SERVED, "unload": UNKNOWN}.items(), range(2)):
        pid = server.workers()[victim]
        os.kill(pid, signal.SIGKILL)

        def done(verb: str = verb) -> bool:
            try:
                return change(server, verb).status_code == 200
            except httpx.TransportError:  # the connection was the dead worker's
                return False

        eventually(done)
        await_successor(server, pid, WORKERS)
        assert readiness(server) == expected
