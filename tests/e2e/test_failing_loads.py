"""A load that fails ends the server at first boot, and never afterwards."""

from pathlib import Path

import pytest

from tests.e2e.steered import SOURCE, ask, kill, pids_of, reached, steered
from tests.running import eventually, serving

MODEL = """
import ctypes, os, signal, sys
from mpserve import Model

class Broken(Model):
    def load(self):
        {load}
"""


@pytest.mark.parametrize(("load", "reason"), [
    ("raise RuntimeError('weights.bin: wrong magic')", "RuntimeError: weights.bin: wrong magic"),
    ("sys.exit(4)", "SystemExit: 4"), ("os.kill(os.getpid(), signal.SIGKILL)", "died while it loaded"),
])  # fmt: skip
def test_at_first_boot_it_ends_the_server_with_the_reason(tmp_path: Path, load: str, reason: str) -> None:
    last_words = tmp_path / "termination-log"
    last_words.touch()
    env = {"MPSERVE_TERMINATION_LOG": str(last_words)}
    with serving(tmp_path, MODEL.format(load=load), "--workers=2", env=env) as server:
        assert server.wait_end() == 3, server.log
        assert reason in last_words.read_text()
        assert reason in server.log


def test_a_load_that_takes_too_long_and_holds_the_gil_is_ended_with_a_stack_dump(tmp_path: Path) -> None:
    with serving(tmp_path, MODEL.format(load="ctypes.PyDLL(None).sleep(60)"), "--load_timeout=0.5") as server:
        assert server.wait_end() == 3
        assert f'File "{tmp_path / "model.py"}", line 7 in load' in server.log
        assert "A worker died while it loaded its models" in server.log


def test_in_a_respawned_worker_it_is_retried_while_the_healthy_go_on(tmp_path: Path) -> None:
    source = SOURCE.replace('raise RuntimeError("the weights are broken")', "os._exit(3)")
    with steered(tmp_path, source=source) as server:
        (tmp_path / "broken").touch()
        dead, healthy = server.workers()
        kill(dead)
        eventually(lambda: "the last 2 worker(s) in this slot failed; loading again in 2 s" in server.log)
        assert pids_of(server) == {healthy}
        (tmp_path / "broken").unlink()
        server.wait_ready(workers=2)
        assert healthy in server.workers()
        restarts = server.metric("mpserve_worker_restarts_total")
        assert restarts in (2, 3)  # the killed worker counts as failed itself, unless it has served for a while
        assert server.log.count("Booting worker") == 2 + restarts


def test_while_another_worker_is_ready_a_loading_one_accepts_nothing(tmp_path: Path) -> None:
    with steered(tmp_path) as server:
        dead, healthy = server.workers()
        (tmp_path / "load").unlink()
        kill(dead)
        reached(server, tmp_path, "loading", 3)
        assert pids_of(server, requests=30) == {healthy}
        kill(healthy)  # now nobody is ready, and it is their turn
        reached(server, tmp_path, "loading", 4)
        answer = ask(server)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_hook_that_fails_in_a_respawned_worker_leaves_the_healthy_alone(tmp_path: Path) -> None:
    hook = "import pathlib\ndef post_fork(server, worker):\n    assert not pathlib.Path('broken').exists()\n"
    (tmp_path / "failing.py").write_text(hook)
    with steered(tmp_path, gunicorn="-c failing.py") as server:
        (tmp_path / "broken").touch()
        dead, healthy = server.workers()
        kill(dead)
        eventually(lambda: server.log.count("AssertionError") > 1)
        assert pids_of(server) == {healthy}
        (tmp_path / "broken").unlink()
        server.wait_ready(workers=2)
        assert healthy in server.workers()
        assert "mpserve_requests_total{" in "".join(server.metrics())  # whose files the dead have left alone


def test_a_worker_that_dies_soon_after_it_is_ready_is_replaced_after_pauses_and_ends_the_server(tmp_path: Path) -> None:
    """As a native library may that aborts in a thread of its own."""
    last_words = tmp_path / "termination-log"
    last_words.touch()
    load = "import threading; threading.Timer(0.2, os._exit, [1]).start()"
    with serving(tmp_path, MODEL.format(load=load), env={"MPSERVE_TERMINATION_LOG": str(last_words)}) as server:
        assert server.wait_end() == 3, server.log
        assert (
            "5 workers in a row could not load their models, or died within 5 s of being ready"
            in last_words.read_text()
        )
        assert server.log.count("worker ready") == 5
        assert [f"loading again in {seconds} s" in server.log for seconds in (1, 2, 4, 8)] == [True] * 4
