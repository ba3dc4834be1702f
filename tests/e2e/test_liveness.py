"""A predict holds up its own model and nothing else; a loop that does not turn is replaced."""

from pathlib import Path

import httpx

from tests.e2e.steered import SOURCE, Background, ask, let, pids, waiting_request
from tests.running import eventually, serving

BLOCKING = """
import asyncio, ctypes, os, time
from pathlib import Path
from mpserve import Model

class Blocking(Model):
    name = "m"

    async def predict(self, payload, headers=None):
        if payload["instances"][0] == "block":
            Path("blocked").touch()
            {block}
        return {{"predictions": [os.getpid()]}}
"""


def test_while_a_predict_runs_health_and_metadata_are_answered(tmp_path: Path) -> None:
    source = SOURCE.replace("concurrency = 8", "concurrency = 1")
    let(tmp_path, "load")
    with serving(tmp_path, source) as server:
        server.wait_ready()
        request = waiting_request(server, tmp_path)
        second = Background(lambda: ask(server))
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v1/models/m"):
            assert server.client.get(path).status_code == 200
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 2)
        assert not request.done()
        assert not second.done()  # one predict at a time
        let(tmp_path, "release")
        assert request.result().status_code == second.result().status_code == 200


def test_a_predict_that_holds_the_gil_for_seconds_loses_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, BLOCKING.format(block="ctypes.PyDLL(None).sleep(7)")) as server:
        workers = server.wait_ready().workers()
        request = Background(lambda: ask(server, "block"))
        eventually((tmp_path / "blocked").exists)
        assert ask(server).status_code == 200  # accepted by the kernel meanwhile, answered afterwards
        assert request.result().status_code == 200
        assert server.workers() == workers


def test_a_worker_that_blocks_its_loop_for_longer_than_timeout_is_replaced_with_a_stack_dump(tmp_path: Path) -> None:
    with serving(tmp_path, BLOCKING.format(block="time.sleep(60)"), "--workers=2", "--timeout=4") as server:
        workers = set(server.wait_ready(workers=2).workers())
        request = Background(lambda: ask(server, "block"))
        eventually((tmp_path / "blocked").exists)
        assert isinstance(request.result(), httpx.RemoteProtocolError)
        assert "WORKER TIMEOUT" in server.log
        assert f'File "{tmp_path / "model.py"}", line 12 in predict' in server.log
        server.wait_ready(workers=2)
        assert len(workers & set(server.workers())) == 1
        assert server.metric("mpserve_requests_in_flight") == 0


def test_a_load_longer_than_timeout_is_not_taken_for_a_blocked_loop(tmp_path: Path) -> None:
    load = "    def load(self):\n"
    source = SOURCE.replace(load, f"{load}        import ctypes; ctypes.PyDLL(None).sleep(6)\n")
    let(tmp_path, "load")
    with serving(tmp_path, source, "--timeout=4") as server:
        server.wait_ready()
        assert len(pids(tmp_path, "loading")) == 1


UNSTEADY = """
from pathlib import Path
from mpserve import Model

class Unsteady(Model):
    name = "m"
    _ready = False

    @property
    def ready(self):
        if Path("broken").exists():
            raise RuntimeError("who knows")
        return self._ready

    @ready.setter
    def ready(self, value):
        self._ready = value

    def predict(self, payload, headers=None):
        return {"predictions": []}
"""


def test_a_tick_that_fails_in_one_part_is_logged_once_and_the_heart_beats_on(tmp_path: Path) -> None:
    with serving(tmp_path, UNSTEADY) as server:
        workers = server.wait_ready().workers()
        let(tmp_path, "broken")
        eventually(lambda: "the worker's row failed" in server.log)
        dates: set[str] = set()

        def beats() -> int:
            """How many heartbeats have been seen: each sets the date of the answers."""
            dates.add(server.client.get("/v2/health/live").headers["date"])
            return len(dates)

        eventually(lambda: beats() == 4)
        assert server.log.count("the worker's row failed") == 1
        (tmp_path / "broken").unlink()
        server.wait_ready()
        assert server.workers() == workers
