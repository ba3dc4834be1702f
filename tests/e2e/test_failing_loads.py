"""A load that fails ends the server at first boot, and never afterwards."""

from pathlib import Path

import pytest

from tests.e2e.steered import SOURCE, ask, kill, let, reached
from tests.running import eventually, serving

MODEL = """
import ctypes, os, signal, sys, time
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
    with serving(
        tmp_path, MODEL.format(load=load), "--workers=2", env={"MPSERVE_TERMINATION_LOG": str(last_words)}
    ) as server:
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
    let(tmp_path, "load")
    with serving(tmp_path, source, "--workers=2") as server:
        server.wait_ready(workers=2)
        (tmp_path / "broken").touch()
        dead, healthy = server.workers()
        kill(dead)
        eventually(lambda: "the last 2 load(s) in this slot failed; loading again in 2 s" in server.log)
        assert {ask(server).json()["predictions"][0] for _ in range(20)} == {healthy}
        (tmp_path / "broken").unlink()
        server.wait_ready(workers=2)
        assert healthy in server.workers()
        assert server.metric("mpserve_worker_restarts_total") == 3
        assert server.log.count("Booting worker") == 5


def test_while_another_worker_is_ready_a_loading_one_accepts_nothing(tmp_path: Path) -> None:
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, "--workers=2") as server:
        server.wait_ready(workers=2)
        dead, healthy = server.workers()
        (tmp_path / "load").unlink()
        kill(dead)
        reached(server, tmp_path, "loading", 3)
        answers = [ask(server) for _ in range(30)]
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["predictions"][0] for answer in answers} == {healthy}
        kill(healthy)  # now nobody is ready, and it is their turn
        reached(server, tmp_path, "loading", 4)
        answer = ask(server)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_a_hook_that_fails_in_a_respawned_worker_leaves_the_healthy_alone(tmp_path: Path) -> None:
    hook = "import pathlib\ndef post_fork(server, worker):\n    assert not pathlib.Path('broken').exists()\n"
    (tmp_path / "hooks.py").write_text(hook)
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, "--workers=2", env={"GUNICORN_CMD_ARGS": "-c hooks.py"}) as server:
        server.wait_ready(workers=2)
        (tmp_path / "broken").touch()
        dead, healthy = server.workers()
        kill(dead)
        eventually(lambda: server.log.count("AssertionError") > 1)
        assert {ask(server).json()["predictions"][0] for _ in range(20)} == {healthy}
        (tmp_path / "broken").unlink()
        server.wait_ready(workers=2)
        assert healthy in server.workers()
        assert "mpserve_requests_total{" in "".join(server.metrics())  # whose files the dead have left alone
