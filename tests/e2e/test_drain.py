"""How a server ends: what was accepted is finished, what was loaded is stopped, and in time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.calls import infer, speaking
from tests.e2e.steered import SOURCE, ask, kill, let, pids, pinned, reached, steered, waiting_request
from tests.running import Server, eventually, serving


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_sigterm_finishes_what_was_accepted_and_stops_the_models(tmp_path: Path, loop: str) -> None:
    with steered(tmp_path, f"--event-loop={loop}") as server:
        workers = set(server.workers())
        with pinned(server, workers):
            request = waiting_request(server, tmp_path)
            server.signal(signal.SIGTERM)
            eventually(server.refuses)
            assert not request.done()
            let(tmp_path, "release")
            assert request.result().status_code == 200
            assert server.wait_end(within=20) == 0
        assert pids(tmp_path, "stopped") == pids(tmp_path, "exited") == workers
        assert "Traceback" not in server.log


def test_while_drain_delay_lasts_the_server_is_not_ready_and_still_accepts(tmp_path: Path) -> None:
    with steered(tmp_path, "--drain_delay=3") as server, pinned(server, set(server.workers())) as connections:
        server.signal(signal.SIGTERM)
        eventually(lambda: httpx.get(f"{server.url}/v2/health/ready", verify=False).status_code == 503, within=2)
        assert ask(server).status_code == 200
        assert server.states() == {"loading": 0, "ready": 0, "draining": 2}
        connection = next(iter(connections.values()))
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().read() == b'{"ready":false,"error":"Server is not ready."}'
        assert server.wait_end(within=20) == 0
        assert server.refuses()


def test_a_predict_that_never_ends_does_not_keep_the_server_past_graceful_timeout(tmp_path: Path) -> None:
    with steered(tmp_path, "--graceful_timeout=4") as server:
        workers = set(server.workers())
        request = waiting_request(server, tmp_path)
        server.signal(signal.SIGTERM)
        assert server.wait_end(within=10) == 0
        assert isinstance(request.result(), httpx.RemoteProtocolError)
        assert pids(tmp_path, "exited") == workers  # so gunicorn's SIGKILL was not needed
        assert "1 request(s) did not finish in time and are abandoned" in server.log


def ctrl_c(server: Server, folder: Path) -> None:
    waiting_request(server, folder)
    os.killpg(server.pid, signal.SIGINT)  # as a terminal does


def sigquit_after_sigterm(server: Server, folder: Path) -> None:
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)  # once more is not more urgent
    eventually(lambda: server.client.get("/v2/health/ready").status_code == 503)
    server.signal(signal.SIGQUIT)


@pytest.mark.parametrize("hurry", [ctrl_c, sigquit_after_sigterm])
def test_who_hurries_waits_neither_for_requests_nor_for_the_delay(
    tmp_path: Path, hurry: Callable[[Server, Path], None]
) -> None:
    with steered(tmp_path, "--graceful_timeout=60", "--drain_delay=60") as server:
        workers = set(server.workers())
        with pinned(server, workers):
            hurry(server, tmp_path)
            assert server.wait_end(within=15) == 0, server.log
        assert pids(tmp_path, "exited") == workers, server.log
        # The time in which it must end was not used up by what nobody waits for.
        assert server.log.count("are abandoned") == (hurry is ctrl_c), server.log


def test_who_hurries_does_not_wait_for_the_clients_of_grpc_to_go(tmp_path: Path) -> None:
    with speaking(tmp_path, "--workers=2", "--graceful_timeout=60") as (server, address):
        worker, other = server.wait_ready(workers=2).workers()
        server.client.close()
        while {worker, other} - {infer(address) for _ in range(10)}:  # a drain waits for a second without calls
            pass
        os.kill(worker, signal.SIGTERM)
        eventually(lambda: server.states()["draining"] == 1)
        os.kill(worker, signal.SIGQUIT)
        eventually(lambda: worker not in server.workers())
        assert "are abandoned" not in server.log


def test_an_old_worker_that_is_hurried_does_not_wait_for_its_successors(tmp_path: Path) -> None:
    with steered(tmp_path) as server:
        old = set(server.workers())
        (tmp_path / "load").unlink()
        before = len(pids(tmp_path, "loading"))
        server.signal(signal.SIGHUP)
        loading = reached(server, tmp_path, "loading", before + 2) - old
        for worker in old:
            os.kill(worker, signal.SIGQUIT)
        eventually(lambda: pids(tmp_path, "exited") >= old)
        assert loading <= set(server.workers())
        let(tmp_path, "load")


BUSY = """
import time
from pathlib import Path
def on_reload(server):
    Path("busy").touch()
    while not Path("go").exists():
        time.sleep(0.01)
"""


def test_sigint_is_heard_that_the_arbiter_finds_together_with_a_sigterm(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    with steered(tmp_path, "--graceful_timeout=60", "--drain_delay=60", gunicorn="-c busy.py") as server:
        server.signal(signal.SIGHUP)
        eventually((tmp_path / "busy").exists)
        server.signal(signal.SIGTERM)
        eventually(lambda: server.client.get("/v2/health/ready").status_code == 503)
        server.signal(signal.SIGINT)
        let(tmp_path, "go")
        assert server.wait_end(within=15) == 0, server.log


def test_a_worker_that_loads_and_cannot_hear_does_not_keep_the_others_from_draining(tmp_path: Path) -> None:
    deaf = 'import ctypes; Path("deaf").touch(); ctypes.PyDLL(None).sleep(60)'  # holds the GIL
    source = SOURCE.replace('raise RuntimeError("the weights are broken")', deaf)
    with steered(tmp_path, "--graceful_timeout=4", source=source) as server:
        dead, healthy = server.workers()
        (tmp_path / "broken").touch()
        kill(dead)
        eventually((tmp_path / "deaf").exists)
        request = waiting_request(server, tmp_path)
        server.signal(signal.SIGTERM)
        let(tmp_path, "release")
        assert request.result().status_code == 200
        assert server.wait_end(within=15) == 0
        assert pids(tmp_path, "exited") == {healthy}


def test_when_the_arbiter_is_killed_its_workers_finish_and_end(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    with steered(tmp_path, env={"PROMETHEUS_MULTIPROC_DIR": str(metrics)}) as server:
        workers = set(server.workers())
        assert list(metrics.iterdir())
        with pinned(server, workers):
            request = waiting_request(server, tmp_path)
            kill(server.pid)
            server.wait_end()
            eventually(server.refuses, within=10)
            let(tmp_path, "release")
            assert request.result().status_code == 200
            eventually(lambda: not server.family(), within=10)
        assert pids(tmp_path, "stopped") == pids(tmp_path, "exited") == workers
        assert not list(metrics.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_arbiter_during_the_first_load_ends_all_at_once(tmp_path: Path, number: int) -> None:
    with serving(tmp_path, SOURCE, "--workers=2", "--graceful_timeout=60") as server:
        reached(server, tmp_path, "loading", 2)
        server.signal(number)
        assert server.wait_end(within=10) == (0 if number == signal.SIGTERM else -number)
        eventually(lambda: not server.family(), within=10)
