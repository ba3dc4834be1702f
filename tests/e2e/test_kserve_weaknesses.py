"""The twenty weaknesses of the kserve SDK 0.21 with several workers (W1 to W20), a test of each, named by what is right here.

Each number was seen in the SDK by running it; the docstring says what happened there.
"""

import json
import textwrap
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

from tests.e2e import calls
from tests.running import eventually, serving

Test = TypeVar("Test", bound=Callable[..., object])

COVERED: dict[str, str] = {}
ELSEWHERE = {
    # Every model was pickled into the children: `TypeError: cannot pickle '_thread.lock' object`.
    "W1": "test_models.test_a_model_that_holds_what_cannot_be_pickled_serves_from_four_workers",
    # The liveness ping killed a worker that held the GIL for seconds, in the midst of its request.
    "W3": "test_liveness.test_a_predict_that_holds_the_gil_for_seconds_loses_nothing",
    # `/v2/health/ready` was True in the code, also with a model that was not ready.
    "W7": "test_boot.test_with_ready_when_all_the_server_is_ready_once_every_worker_is",
    # `stop()` ran in the parent only.
    "W13": "test_drain.test_sigterm_finishes_what_was_accepted_and_stops_the_models",
    # There was no reload, no recycling and no worker numbers.
    "W16": "test_signals.test_after_hup_the_old_workers_serve_until_the_new_ones_are_ready",
    # Spawned children imported the script again, and parsed its command line again.
    "W18": "test_ways_in.test_what_comes_after_start_runs_once_in_the_arbiter_and_never_in_a_worker",
    # The socket was closed at once, without a phase of 503 on readiness.
    "W19": "test_drain.test_while_drain_delay_lasts_the_server_is_not_ready_and_still_accepts",
}
"""Tests of other modules that show what is right, and what the SDK did."""
PID = """
import os
from mpserve import Model

class Pid(Model):
    name = "m"
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid()]}
"""


def weakness(number: str) -> Callable[[Test], Test]:
    def note(test: Test) -> Test:
        COVERED[number] = test.__name__
        return test

    return note


def source(text: str) -> str:
    return textwrap.dedent(text)


@weakness("W2")
def test_an_import_of_fifteen_seconds_starts_once_and_is_not_killed(tmp_path: Path) -> None:
    """The SDK's 5 s liveness ping covered start-up: killed and respawned for ever."""
    model = PID + source("""
        import time
        with open("imports", "a") as file:
            file.write("x")
        time.sleep(15)
        class Slow(Pid):
            name = "m"
            def load(self):
                with open("loads", "a") as file:
                    file.write("x")
        del Pid
    """)
    with serving(tmp_path, model, "--workers=2", "--timeout=4") as server:
        server.wait_ready(workers=2)
        assert (tmp_path / "imports").read_text() == "x"
        assert (tmp_path / "loads").read_text() == "xx"
        assert server.metric("mpserve_worker_restarts_total") == 0


@weakness("W4")
def test_grpc_answers_while_another_worker_is_starting(tmp_path: Path) -> None:
    """The SDK's supervisor pinged starting workers on gRPC's event loop: calls waited 5 to 10 s."""
    slow = (
        calls.PID
        + """
    def load(self):
        if os.path.exists("slow"):
            open("loading", "a").close()
            while not os.path.exists("go"):
                time.sleep(0.05)
"""
    )
    with calls.speaking(tmp_path, "--workers=2", source=slow) as (server, address):
        server.wait_ready(workers=2)
        survivor, victim = server.workers()
        (tmp_path / "slow").touch()
        psutil.Process(victim).kill()
        eventually((tmp_path / "loading").is_file)
        assert {calls.infer(address) for _ in range(20)} == {survivor}
        (tmp_path / "go").touch()
        eventually(lambda: server.states().get("ready") == 2)


@weakness("W5")
def test_metrics_agree_on_every_scrape_and_survive_a_killed_worker(tmp_path: Path) -> None:
    """Each scrape has a connection of its own. The SDK exposed one worker's numbers: 16, 6 and 8 of 30 predicts."""
    sample = 'request_predict_seconds_count{model_name="m"}'
    with serving(tmp_path, PID, "--workers=3") as server:
        server.wait_ready(workers=3)
        server.pids_answering("m", 30)
        eventually(lambda: server.metric(sample) == 30)  # workers write their counts ten times a second
        assert {server.metric(sample) for _ in range(12)} == {30.0}
        victim = psutil.Process(server.workers()[0])
        victim.kill()
        eventually(
            lambda: victim.pid not in server.workers() and server.states() == {"loading": 0, "ready": 3, "draining": 0}
        )
        server.pids_answering("m", 12)
        eventually(lambda: server.metric(sample) == 42)
        assert {server.metric(sample) for _ in range(6)} == {42.0}


@weakness("W6")
def test_load_and_unload_reach_every_worker(tmp_path: Path) -> None:
    """The SDK's reached the worker that was asked: of 12 ready checks after a load, 8 said 404; a respawn forgot it."""
    with serving(tmp_path, PID, "--workers=3") as server:
        server.wait_ready(workers=3)
        for verb, status in (("unload", 404), ("load", 200), ("unload", 404)):
            answer = httpx.post(f"{server.url}/v2/repository/models/m/{verb}", timeout=60)
            assert (answer.status_code, answer.json()) == (200, {"name": "m", verb: True})
            found = {httpx.get(f"{server.url}/v2/models/m/ready").status_code for _ in range(24)}
            assert found == {status}


@weakness("W8")
def test_every_worker_of_a_transformer_asks_the_predictor(tmp_path: Path) -> None:
    """The SDK's other workers did not know it: 501 "Could not find PredictorConfig", and `instances` was validated no more."""
    transformer = source("""
        import os
        from mpserve import Model

        class Transformer(Model):
            name = "m"
            def postprocess(self, result, headers=None):
                return {"predictions": [os.getpid()], "predictor": result["predictions"]}
    """)
    for folder in ("predictor", "transformer"):
        (tmp_path / folder).mkdir()
    with serving(tmp_path / "predictor", PID, "--workers=2") as predictor:
        host = f"--predictor_host=127.0.0.1:{predictor.port}"
        with serving(tmp_path / "transformer", transformer, "--workers=3", host) as server:
            predictor.wait_ready(workers=2)
            server.wait_ready(workers=3)
            answering: set[int] = set()
            eventually(lambda: answering.update(server.pids_answering("m", 10)) or len(answering) == 3)
            assert answering == set(server.workers())
            assert server.predict("m", [0]).json()["predictor"][0] in predictor.workers()
            wrong = [
                httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": 5}, timeout=30) for _ in range(12)
            ]
            assert {(answer.status_code, answer.json()["error"]) for answer in wrong} == {
                (400, 'Expected "instances" to be a list')
            }


@weakness("W9")
def test_middleware_added_to_the_application_works_in_every_worker(tmp_path: Path) -> None:
    """Middleware added to the SDK's app under `__main__` was there with one worker and gone with two."""
    script = PID + source("""
        from fastapi.middleware.cors import CORSMiddleware
        from kserve import ModelServer
        from kserve.model_server import app

        if __name__ == "__main__":
            app.add_middleware(CORSMiddleware, allow_origins=["https://example.org"])
            ModelServer().start([Pid("m")])
    """)
    with serving(tmp_path, script, "--workers=2", target="script.py") as server:
        server.wait_ready(workers=2)
        seen: dict[int, str | None] = {}

        def ask() -> bool:
            answer = httpx.post(
                f"{server.url}/v1/models/m:predict", json={"instances": []}, headers={"origin": "https://example.org"}
            )
            seen[answer.json()["predictions"][0]] = answer.headers.get("access-control-allow-origin")
            return len(seen) == 2

        eventually(ask)
        assert set(seen.values()) == {"https://example.org"}


@weakness("W10")
def test_every_worker_answers_grpc_and_metrics_count_its_calls(tmp_path: Path) -> None:
    """The SDK served gRPC from its parent alone, which held one more copy of the model for it."""
    with calls.speaking(tmp_path, "--workers=2") as (server, address):
        server.wait_ready(workers=2)
        pids: list[int] = []
        eventually(lambda: pids.append(calls.infer(address)) or len(set(pids)) == 2)
        assert set(pids) == set(server.workers())
        sample = 'mpserve_grpc_requests_total{method="ModelInfer",status="OK"}'
        eventually(lambda: server.metric(sample) == len(pids))
        eventually(lambda: server.metric('request_predict_seconds_count{model_name="m"}') == len(pids))


@weakness("W11")
def test_preloaded_weights_are_in_memory_once_for_all_workers(tmp_path: Path) -> None:
    """The SDK held one copy in the parent and one in each child."""
    megabytes = 100
    model = source(f"""
        import numpy as np
        from mpserve import Model

        class Heavy(Model):
            name = "m"
            def preload(self):
                self.weights = np.ones({megabytes} * 2**20 // 8)
            def predict(self, payload, headers=None):
                return {{"predictions": [float(self.weights.sum())]}}
    """)
    with serving(tmp_path, model, "--workers=3") as server:
        server.wait_ready(workers=3)
        for _ in range(20):
            assert (
                httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": []}, timeout=30).status_code == 200
            )
        own = [psutil.Process(pid).memory_full_info().uss / 2**20 for pid in server.workers()]
        assert max(own) < megabytes, f"private memory of the workers, MiB: {own}"


@weakness("W12")
def test_each_worker_sees_the_device_of_its_slot_also_after_a_respawn(tmp_path: Path) -> None:
    """The SDK's parent held a CUDA context, and nothing gave a worker a device of its own."""
    model = source("""
        import os
        from mpserve import Model

        class Where(Model):
            name = "m"
            def predict(self, payload, headers=None):
                return {"predictions": [os.getpid(), self.device, os.environ["CUDA_VISIBLE_DEVICES"]]}
    """)
    devices = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}  # no driver is asked, so no GPU is needed to see them dealt
    with serving(tmp_path, model, "--workers=2", env=devices) as server:
        server.wait_ready(workers=2)
        found: dict[int, tuple[str, str]] = {}

        def dealt() -> bool:
            pid, device, token = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": []}).json()[
                "predictions"
            ]
            found[pid] = (device, token)
            return len(found) == 2

        eventually(dealt)
        assert sorted(found.values()) == [("cuda:0", "GPU-a"), ("cuda:0", "GPU-b")]
        victim, (_, lost) = next(iter(found.items()))
        psutil.Process(victim).kill()
        found.clear()
        eventually(lambda: victim not in server.workers() and server.states().get("ready") == 2)
        eventually(lambda: dealt() and len(found) == 2)
        assert sorted(token for _, token in found.values()) == ["GPU-a", "GPU-b"]
        successor = next(pid for pid, (_, token) in found.items() if token == lost)
        assert successor != victim


@weakness("W14")
def test_start_and_start_engine_run_in_every_worker(tmp_path: Path) -> None:
    """The SDK awaited `start_engine()` on the parent's loop only."""
    model = PID + source("""
        import asyncio
        class Engine(Pid):
            name = "m"
            engine = True
            def start(self):
                open(f"started-{os.getpid()}", "w").close()
            async def start_engine(self):
                asyncio.get_running_loop()
                open(f"engine-{os.getpid()}", "w").close()
        del Pid
    """)
    with serving(tmp_path, model, "--workers=2") as server:
        server.wait_ready(workers=2)
        for kind in ("started", "engine"):
            assert {path.name for path in tmp_path.glob(f"{kind}-*")} == {f"{kind}-{pid}" for pid in server.workers()}


@weakness("W15")
def test_a_respawned_worker_keeps_the_log_configuration_and_its_death_is_told(tmp_path: Path) -> None:
    """The SDK's successor lost the log file's settings, and neither exit code nor signal was logged."""
    with serving(tmp_path, PID, "--workers=1", "--log_format=json", "--access_log") as server:
        server.wait_ready(workers=1)
        [victim] = server.workers()
        psutil.Process(victim).kill()
        eventually(lambda: server.workers() not in ([victim], []))
        server.wait_ready(workers=1)
        server.predict("m", [0])
        [successor] = server.workers()
        records = [json.loads(line) for line in server.log.splitlines()]
    assert any(str(victim) in record["message"] and "SIGKILL" in record["message"] for record in records)
    answered = [
        r for r in records if r["pid"] == successor and r["logger"] == "mpserve.access" and ":predict" in r["message"]
    ]
    assert answered
    assert answered[0]["slot"] == 0


@weakness("W17")
@pytest.mark.parametrize(
    ("name", "loop"), [("uvloop", "uvloop.Loop"), ("asyncio", "asyncio.unix_events._UnixSelectorEventLoop")]
)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_event_loop_that_is_asked_for_is_used(tmp_path: Path, name: str, loop: str, workers: int) -> None:
    """The SDK's `--event-loop` had no effect with one worker."""
    model = source("""
        import asyncio
        from mpserve import Model

        class Loop(Model):
            name = "m"
            async def predict(self, payload, headers=None):
                loop = type(asyncio.get_running_loop())
                return {"predictions": [f"{loop.__module__}.{loop.__name__}"]}
    """)
    with serving(tmp_path, model, f"--event-loop={name}", f"--workers={workers}") as server:
        server.wait_ready(workers=workers)
        assert server.predict("m", [0]).json() == {"predictions": [loop]}


@weakness("W20")
def test_one_worker_and_three_answer_alike(tmp_path: Path) -> None:
    """With several workers the SDK lost validation, predictor settings, middleware and loop options."""
    model = source("""
        from mpserve import Model

        class Echo(Model):
            name = "m"
            def predict(self, payload, headers=None):
                return {"predictions": payload["instances"]}
    """)
    requests = [
        ("POST", "/v1/models/m:predict", b'{"instances": 5}'),
        ("POST", "/v1/models/m:predict", b'{"instances": [1, 2]}'),
        ("POST", "/v1/models/m:predict", b"not json"),
        ("POST", "/v1/models/m:explain", b'{"instances": []}'),
        ("POST", "/v1/models/other:predict", b"{}"),
        ("POST", "/v2/models/m/infer", b'{"inputs": []}'),
        ("GET", "/v2/models/m", b""),
        ("GET", "/nowhere", b""),
    ]
    answers: list[list[set[tuple[int, bytes]]]] = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        with serving(folder, model, f"--workers={workers}") as server:
            server.wait_ready(workers=workers)
            answers.append([
                {
                    (answer.status_code, answer.content)
                    for answer in (httpx.request(method, server.url + path, content=body) for _ in range(4 * workers))
                }
                for method, path, body in requests
            ])  # fmt: skip
    assert answers[0] == answers[1]
    assert [len(found) for found in answers[1]] == [1] * len(requests)


def test_every_weakness_is_covered() -> None:
    assert sorted({**COVERED, **ELSEWHERE}, key=lambda number: int(number[1:])) == [f"W{n}" for n in range(1, 21)]
    for module, _, test in map(methodcaller("partition", "."), ELSEWHERE.values()):
        assert f"def {test}(" in Path(__file__).with_name(f"{module}.py").read_text()
