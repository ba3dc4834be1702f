"""How a server ends: what was accepted is finished, what was loaded is stopped, and in time."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.e2e.steered import HOOKS, SOURCE, ask, kill, let, pids, pinned, reached, waiting_request
from tests.running import Server, eventually, serving

Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    let(tmp_path, "load")
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Start:
    """Start a server that says which workers have come to their end by themselves, where ``worker_exit`` runs."""
    (folder / "hooks.py").write_text(HOOKS)

    def start(*flags: str, source: str = SOURCE, **env: str) -> AbstractContextManager[Server]:
        return serving(folder, source, *flags, env={"GUNICORN_CMD_ARGS": "-c hooks.py", **env})

    return start


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_finishes_what_was_accepted_and_stops_the_models(start: Start, folder: Path, loop: str) -> None:
    with start("--workers=2", f"--event-loop={loop}") as server:
        workers = set(server.wait_ready(workers=2).workers())
        with pinned(server, workers):
            request = waiting_request(server, folder)
            server.signal(signal.SIGTERM)
            eventually(server.refuses)
            assert not request.done()
            let(folder, "release")
            assert request.result().status_code == 200
            assert server.wait_end(within=20) == 0
        assert pids(folder, "stopped") == pids(folder, "exited") == workers
        assert "Traceback" not in server.log


def test_while_drain_delay_lasts_the_server_is_not_ready_and_still_accepts(start: Start) -> None:
    with start("--workers=2", "--drain_delay=2") as server:
        server.wait_ready(workers=2)
        with pinned(server, set(server.workers())) as connections:
            server.signal(signal.SIGTERM)
            eventually(lambda: httpx.get(f"{server.url}/v2/health/ready", verify=False).status_code == 503, within=2)
            assert ask(server).status_code == 200
            assert server.states() == {"loading": 0, "ready": 0, "draining": 2}
            connection = next(iter(connections.values()))
            connection.request("GET", "/v2/health/ready")
            assert connection.getresponse().read() == b'{"ready":false,"error":"Server is not ready."}'
            assert server.wait_end(within=20) == 0
        assert server.refuses()


def test_a_predict_that_never_ends_does_not_keep_the_server_past_graceful_timeout(start: Start, folder: Path) -> None:
    with start("--graceful_timeout=4") as server:
        workers = set(server.wait_ready().workers())
        request = waiting_request(server, folder)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=10) == 0
        assert isinstance(request.result(), httpx.RemoteProtocolError)
        assert pids(folder, "exited") == workers  # so gunicorn's SIGKILL was not needed
        assert "1 request(s) did not finish in time and are abandoned" in server.log


def ctrl_c(server: Server, folder: Path) -> None:
    waiting_request(server, folder)
    os.killpg(server.pid, signal.SIGINT)  # as a terminal does


def sigquit_after_sigterm(server: Server, folder: Path) -> None:
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)  # once more is not more urgent
    eventually(lambda: httpx.get(f"{server.url}/v2/health/ready", verify=False).status_code == 503)
    server.signal(signal.SIGQUIT)


@pytest.mark.parametrize("hurry", [ctrl_c, sigquit_after_sigterm])
def test_who_hurries_does_not_wait_for_requests_or_the_delay(
    start: Start, folder: Path, hurry: Callable[[Server, Path], None]
) -> None:
    with start("--workers=2", "--graceful_timeout=60", "--drain_delay=60") as server:
        workers = set(server.wait_ready(workers=2).workers())
        hurry(server, folder)
        assert server.wait_end(within=15) == 0, server.log
        assert pids(folder, "exited") == workers, server.log


def test_sigterm_during_the_first_load_ends_the_server_at_once(start: Start, folder: Path) -> None:
    (folder / "load").unlink()
    with start("--workers=2", "--graceful_timeout=60") as server:
        reached(server, folder, "loading", 2)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=10) == 0
        assert pids(folder, "exited") == pids(folder, "loading")


def test_a_worker_that_loads_and_cannot_hear_does_not_keep_the_others_from_draining(start: Start, folder: Path) -> None:
    deaf = 'import ctypes; Path("deaf").touch(); ctypes.PyDLL(None).sleep(60)'  # holds the GIL
    source = SOURCE.replace('raise RuntimeError("the weights are broken")', deaf)
    with start("--workers=2", "--graceful_timeout=4", source=source) as server:
        dead, healthy = server.wait_ready(workers=2).workers()
        (folder / "broken").touch()
        kill(dead)
        eventually((folder / "deaf").exists)
        request = waiting_request(server, folder)
        server.signal(signal.SIGTERM)
        let(folder, "release")
        assert request.result().status_code == 200
        assert server.wait_end(within=15) == 0
        assert pids(folder, "exited") == {healthy}


def test_when_the_arbiter_is_killed_its_workers_finish_and_end(start: Start, folder: Path) -> None:
    metrics = folder / "metrics"
    metrics.mkdir()
    with start("--workers=2", PROMETHEUS_MULTIPROC_DIR=str(metrics)) as server:
        workers = set(server.wait_ready(workers=2).workers())
        assert list(metrics.iterdir())
        with pinned(server, workers):
            request = waiting_request(server, folder)
            kill(server.pid)
            server.wait_end()
            eventually(server.refuses, within=10)
            let(folder, "release")
            assert request.result().status_code == 200
            eventually(lambda: not server.family(), within=10)
        assert pids(folder, "stopped") == pids(folder, "exited") == workers
        assert not list(metrics.iterdir())


def test_a_worker_that_loads_ends_when_the_arbiter_is_killed(start: Start, folder: Path) -> None:
    (folder / "load").unlink()
    with start() as server:
        reached(server, folder, "loading")
        kill(server.pid)
        server.wait_end()
        eventually(lambda: not server.family(), within=10)
