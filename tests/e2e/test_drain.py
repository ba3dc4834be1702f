"""How a server ends: what was accepted is finished, what was loaded is stopped, and in time."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.steered import HOOKS, SOURCE, ask, kill, let, pids, pinned, reached, waiting_request
from tests.running import eventually, serving

HOOKED = {"GUNICORN_CMD_ARGS": "-c hooks.py"}
"""``worker_exit`` runs only in a worker that comes to its end by itself."""

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hooks.py").write_text(HOOKS)
    let(tmp_path, "load")
    return tmp_path


@LOOPS
def test_sigterm_finishes_what_was_accepted_and_stops_the_models(folder: Path, loop: str) -> None:
    with serving(folder, SOURCE, "--workers=2", f"--event-loop={loop}", env=HOOKED) as server:
        workers = set(server.wait_ready(workers=2).workers())
        with pinned(server, workers):
            request = waiting_request(server, folder)
            server.signal(signal.SIGTERM)
            eventually(server.refuses)
            assert not request.done()
            let(folder, "release")
            assert request.result().status_code == 200
            assert server.wait_end(within=20) == 0
        assert pids(folder, "stopped") == workers
        assert pids(folder, "exited") == workers
        assert "Traceback" not in server.log


def test_while_drain_delay_lasts_the_server_is_not_ready_and_still_accepts(folder: Path) -> None:
    with serving(folder, SOURCE, "--workers=2", "--drain_delay=3") as server:
        server.wait_ready(workers=2)
        with pinned(server, set(server.workers())) as connections:
            server.signal(signal.SIGTERM)
            eventually(lambda: "Handling signal: term" in server.log)
            eventually(lambda: httpx.get(f"{server.url}/v2/health/ready", verify=False).status_code == 503, within=2)
            assert ask(server).status_code == 200
            assert server.states() == {"loading": 0, "ready": 0, "draining": 2}
            (connection, *_) = connections.values()
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().read() == b'{"ready":false,"error":"Server is not ready."}'
            assert server.wait_end(within=20) == 0
        assert server.refuses()


def test_a_predict_that_never_ends_does_not_keep_the_server_past_graceful_timeout(folder: Path) -> None:
    with serving(folder, SOURCE, "--graceful_timeout=4", env=HOOKED) as server:
        workers = set(server.wait_ready().workers())
        request = waiting_request(server, folder)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=10) == 0
        assert isinstance(request.result(), httpx.RemoteProtocolError)
        assert pids(folder, "exited") == workers  # so gunicorn's SIGKILL was not needed
        assert "1 request(s) did not finish in time and are abandoned" in server.log


def test_ctrl_c_hurries(folder: Path) -> None:
    with serving(folder, SOURCE, "--workers=2", "--graceful_timeout=60", "--drain_delay=60", env=HOOKED) as server:
        workers = set(server.wait_ready(workers=2).workers())
        waiting_request(server, folder)
        os.killpg(server.pid, signal.SIGINT)  # as a terminal does
        assert server.wait_end(within=15) == 0, server.log
        assert pids(folder, "exited") == workers, server.log


def test_sigquit_hurries_a_drain_that_sigterm_began(folder: Path) -> None:
    with serving(folder, SOURCE, "--graceful_timeout=60", "--drain_delay=60", env=HOOKED) as server:
        workers = set(server.wait_ready().workers())
        server.signal(signal.SIGTERM)
        server.signal(signal.SIGTERM)  # once more is not more urgent
        eventually(lambda: server.client.get("/v2/health/ready").status_code == 503)
        server.signal(signal.SIGQUIT)
        assert server.wait_end(within=15) == 0
        assert pids(folder, "exited") == workers


def test_sigterm_during_the_first_load_ends_the_server_at_once(folder: Path) -> None:
    (folder / "load").unlink()
    with serving(folder, SOURCE, "--workers=2", "--graceful_timeout=60", env=HOOKED) as server:
        reached(server, folder, "loading", 2)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=10) == 0
        assert pids(folder, "exited") == pids(folder, "loading")


def test_a_worker_that_loads_and_cannot_hear_does_not_keep_the_others_from_draining(folder: Path) -> None:
    deaf = 'import ctypes; Path("deaf").touch(); ctypes.PyDLL(None).sleep(60)'  # holds the GIL
    source = SOURCE.replace('raise RuntimeError("the weights are broken")', deaf)
    with serving(folder, source, "--workers=2", "--graceful_timeout=5", env=HOOKED) as server:
        server.wait_ready(workers=2)
        dead, healthy = server.workers()
        (folder / "broken").touch()
        kill(dead)
        eventually((folder / "deaf").exists)
        request = waiting_request(server, folder)
        server.signal(signal.SIGTERM)
        let(folder, "release")
        assert request.result().status_code == 200
        assert server.wait_end(within=15) == 0
        assert pids(folder, "exited") == {healthy}


def test_when_the_arbiter_is_killed_its_workers_finish_and_end(folder: Path) -> None:
    (folder / "metrics").mkdir()
    env = {**HOOKED, "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    with serving(folder, SOURCE, "--workers=2", env=env) as server:
        workers = set(server.wait_ready(workers=2).workers())
        assert list((folder / "metrics").iterdir())
        with pinned(server, workers):
            request = waiting_request(server, folder)
            kill(server.pid)
            server.wait_end()
            eventually(server.refuses, within=10)
            let(folder, "release")
            assert request.result().status_code == 200
            eventually(lambda: not server.family(), within=10)
        assert pids(folder, "stopped") == pids(folder, "exited") == workers
        assert not list((folder / "metrics").iterdir())


def test_a_worker_that_loads_ends_when_the_arbiter_is_killed(folder: Path) -> None:
    (folder / "load").unlink()
    with serving(folder, SOURCE) as server:
        reached(server, folder, "loading")
        kill(server.pid)
        server.wait_end()
        eventually(lambda: not server.family(), within=10)
