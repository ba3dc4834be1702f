"""A predict holds up its own model and nothing else; a loop that does not turn is replaced."""

from pathlib import Path

import httpx

from tests.e2e.steered import SOURCE, Background, ask, let, pids
from tests.running import Server, eventually, serving

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


def blocking_request(server: Server, folder: Path) -> Background:
    request = Background(lambda: ask(server, "block"))
    eventually((folder / "blocked").exists)
    return request


def test_a_predict_that_holds_the_gil_for_seconds_loses_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, BLOCKING.format(block="ctypes.PyDLL(None).sleep(6)")) as server:
        workers = server.wait_ready().workers()
        request = blocking_request(server, tmp_path)
        assert ask(server).status_code == 200  # accepted by the kernel meanwhile, answered afterwards
        assert request.result().status_code == 200
        assert server.workers() == workers


def test_a_worker_that_blocks_its_loop_for_longer_than_timeout_is_replaced_with_a_stack_dump(tmp_path: Path) -> None:
    with serving(tmp_path, BLOCKING.format(block="time.sleep(60)"), "--workers=2", "--timeout=4") as server:
        workers = set(server.wait_ready(workers=2).workers())
        assert isinstance(blocking_request(server, tmp_path).result(), httpx.RemoteProtocolError)
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
