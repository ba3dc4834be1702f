"""Load and unload, asked of one worker, true of all; each test with several workers, each asked on a fresh connection."""

import contextlib
import itertools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.running import PATIENCE, Server, eventually, serving

WORKERS = 4

MAIN = """
import os
from mpserve import Model

class Pid(Model):
    name = "pid"
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid()]}
"""

VERSIONED = """
import os
from pathlib import Path
from mpserve import Model

class Versioned(Model):
    def load(self):
        self.tag = (Path(__file__).parent / "tag").read_text()
        if self.tag == "broken":
            raise ValueError("no weights")
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


@pytest.fixture(name="folder")
def folder_of_a_model(tmp_path: Path) -> Path:
    """A folder with the model ``b``, to be loaded by name."""
    (tmp_path / "models" / "b").mkdir(parents=True)
    (tmp_path / "models" / "b" / "model.py").write_text(VERSIONED)
    tag(tmp_path, "one")
    return tmp_path


def tag(folder: Path, text: str) -> None:
    (folder / "models" / "b" / "tag").write_text(text)


def post(server: Server, path: str, body: Any = None) -> httpx.Response:
    content = b"" if body is None else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, timeout=PATIENCE, verify=False)


def of_each_worker(server: Server, path: str) -> dict[int, int]:
    """The status of ``GET path`` as each worker gives it, by pid. Connections that stay open go to all of them."""
    found: dict[int, int] = {}
    with contextlib.ExitStack() as held:
        for _ in range(100):
            client = held.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE, verify=False))
            pid = client.post("/v1/models/pid:predict", json={"instances": []}).json()["predictions"][0]
            found.setdefault(pid, client.get(path).status_code)  # the connection stays with its worker
            if len(found) == WORKERS:
                break
    assert set(found) == set(server.workers())
    return found


def tags(server: Server) -> set[str]:
    """Which tags workers answer with, and each worker is asked."""
    found: dict[int, str] = {}
    with contextlib.ExitStack() as held:
        for _ in range(100):
            client = held.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE, verify=False))
            pid, text = client.post("/v1/models/b:predict", json={"instances": []}).json()["predictions"]
            assert found.setdefault(pid, text) == text
            if len(found) == WORKERS:
                break
    assert set(found) == set(server.workers())
    return set(found.values())


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

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        over.set()
        for thread in threads:
            thread.join()


def kill_and_await_its_successor(server: Server, victim: int) -> None:
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in server.workers() and server.states().get("ready") == WORKERS)


def start(folder: Path, *flags: str) -> Any:
    return serving(folder, MAIN, f"--workers={WORKERS}", "--model_dir=models", *flags)


def test_after_the_answer_every_worker_agrees_and_another_model_has_lost_no_request(folder: Path) -> None:
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        with traffic(server, "pid") as outcomes:
            for _ in range(3):
                assert post(server, "/v2/repository/models/b/load").json() == {"name": "b", "load": True}
                assert set(of_each_worker(server, "/v2/models/b/ready").values()) == {200}
                assert post(server, "/v2/repository/models/b/unload").json() == {"name": "b", "unload": True}
                assert set(of_each_worker(server, "/v2/models/b/ready").values()) == {404}
        assert set(outcomes) == {200}
        assert len((folder / "stops").read_text().splitlines()) == 3 * WORKERS


def test_a_model_loaded_anew_is_the_new_one_in_every_worker_and_loses_no_request(folder: Path) -> None:
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        post(server, "/v2/repository/models/b/load").raise_for_status()
        assert tags(server) == {"one"}
        with traffic(server, "b", clients=1) as outcomes:
            for text in ("two", "three"):
                tag(folder, text)
                post(server, "/v2/repository/models/b/load").raise_for_status()
                assert tags(server) == {text}
        assert set(outcomes) == {200}


def test_a_killed_worker_returns_with_the_same_set_and_only_what_it_held_is_lost(folder: Path) -> None:
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        with traffic(server, "pid", clients=3) as outcomes:
            for verb, status in (("load", 200), ("unload", 404)):
                post(server, f"/v2/repository/models/b/{verb}").raise_for_status()
                kill_and_await_its_successor(server, server.workers()[0])
                assert set(of_each_worker(server, "/v2/models/b/ready").values()) == {status}
        assert set(outcomes) <= {200, "lost"}
        assert outcomes["lost"] <= 2 * 3  # of each of two workers at most one request per client


def test_a_load_that_fails_in_one_worker_says_why_and_changes_nothing(folder: Path) -> None:
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        post(server, "/v2/repository/models/b/load").raise_for_status()
        tag(folder, "broken in one")
        answer = post(server, "/v2/repository/models/b/load")
        assert answer.status_code == 500
        assert ": load() of model b failed: ValueError: no memory in this one" in answer.json()["error"]
        assert tags(server) == {"one"}
        tag(folder, "two")
        post(server, "/v2/repository/models/b/load").raise_for_status()
        assert tags(server) == {"two"}


def test_a_load_that_kills_its_workers_is_tried_once_by_each_at_most(folder: Path) -> None:
    tag(folder, "killer")
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        with pytest.raises(httpx.TransportError):  # who was asked died as well
            post(server, "/v2/repository/models/b/load")

        def is_over() -> bool:
            try:
                return set(of_each_worker(server, "/v2/models/b/ready").values()) == {404}
            except (httpx.TransportError, AssertionError):  # one more has died
                return False

        eventually(lambda: server.states().get("ready") == WORKERS and is_over())
        assert 1 <= server.metric("mpserve_worker_restarts_total") <= WORKERS
        assert "loading again" not in server.log
        tag(folder, "mended")
        post(server, "/v2/repository/models/b/load").raise_for_status()
        assert tags(server) == {"mended"}


def test_loads_asked_of_several_workers_at_once_all_come_true(folder: Path) -> None:
    for name in ("c", "d", "e"):
        (folder / "models" / name).mkdir()
        for file in ("model.py", "tag"):
            (folder / "models" / name / file).write_text((folder / "models" / "b" / file).read_text())
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(
                target=lambda name=name: answers.append(post(server, f"/v2/repository/models/{name}/load"))
            )
            for name in "bcde"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 4
        for name in "bcde":
            assert set(of_each_worker(server, f"/v2/models/{name}/ready").values()) == {200}


def test_a_respawn_in_the_midst_of_loads_ends_in_agreement(folder: Path) -> None:
    with start(folder) as server:
        server.wait_ready(workers=WORKERS)
        for verb, victim in itertools.product(("load", "unload"), range(2)):
            pid = server.workers()[victim]
            os.kill(pid, signal.SIGKILL)

            def done(verb: str = verb) -> bool:
                try:
                    return post(server, f"/v2/repository/models/b/{verb}").status_code == 200
                except httpx.TransportError:  # the connection was the dead worker's
                    return False

            eventually(done)
            eventually(lambda pid=pid: pid not in server.workers() and server.states().get("ready") == WORKERS)
            assert set(of_each_worker(server, "/v2/models/b/ready").values()) == {200 if verb == "load" else 404}
