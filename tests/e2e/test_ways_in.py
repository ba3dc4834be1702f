"""Every way in starts the same server: the command, a script, gunicorn with our configuration or a user's own, uvicorn."""

import shutil
import sys
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from tests.e2e.workers import await_successor, kill_and_await_successor, of_each_worker
from tests.running import Server, eventually, free_port, running

MODELS = Path(__file__).parents[1] / "models"
REPOSITORY = Path(__file__).parents[2]
MPSERVE = (sys.executable, "-m", "mpserve", "serve")
GUNICORN = (sys.executable, "-m", "gunicorn")


class Way(NamedTuple):
    """How a user starts the server; PORT stands for a free port."""

    command: tuple[str, ...]
    env: dict[str, str] = {}  # noqa: RUF012


FLAGS = ("--workers=2", "--http_port=PORT")
VARIABLES = {"MPSERVE_HTTP_PORT": "PORT", "MPSERVE_WORKERS": "2"}
OUR_CONFIG = ("-c", str(REPOSITORY / "gunicorn.conf.py"))
WAYS = {
    "class in a file": Way((*MPSERVE, "pid.py:Pid", *FLAGS)),
    "pair of functions": Way((*MPSERVE, *FLAGS, "--model_name=m", "functions.py")),
    "object in a package": Way((*MPSERVE, "package.module:models", *FLAGS)),
    "KServe container": Way((*MPSERVE, "--model_dir=mnt", "--model_name=m", "--http_port=PORT", "--workers=2")),
    "GUNICORN_CMD_ARGS": Way((*MPSERVE, "pid.py"), {"GUNICORN_CMD_ARGS": "--workers=2 --bind=127.0.0.1:PORT"}),
    "script through the command": Way((*MPSERVE, "script.py", *FLAGS)),
    "guarded script": Way((sys.executable, "guarded_script.py", "--http_port", "PORT")),
    "gunicorn with WEB_CONCURRENCY and GUNICORN_CMD_ARGS": Way((*GUNICORN, *OUR_CONFIG),
        {"WEB_CONCURRENCY": "2", "GUNICORN_CMD_ARGS": "--bind=127.0.0.1:PORT", "MPSERVE_MODEL_DIR": "mnt"}),
    "gunicorn with a user's configuration": Way((*GUNICORN, "-c", "user_gunicorn.conf.py"),
        {"MPSERVE_HTTP_PORT": "PORT", "MPSERVE_TARGET": "pid.py"}),
    "gunicorn with an application in a middleware": Way(
        (*GUNICORN, "-c", "python:mpserve.gunicorn_config", "application:wrapped"), VARIABLES),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: the models beside each other, one in a package, one where KServe would mount it."""
    for file in MODELS.glob("*.py"):
        shutil.copy(file, tmp_path)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "module.py").write_text("from pid import Pid\n\nmodels = [Pid()]\n")
    (tmp_path / "mnt").mkdir()
    shutil.copy(MODELS / "pid.py", tmp_path / "mnt/model.py")
    return tmp_path


def start(way: Way, folder: Path) -> AbstractContextManager[Server]:
    port = free_port()
    command = [word.replace("PORT", str(port)) for word in way.command]
    env = {name: value.replace("PORT", str(port)) for name, value in way.env.items()}
    return running(command, folder, port, env)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_every_way_in_starts_the_same_server(folder: Path, way: Way) -> None:
    with start(way, folder) as server:
        workers = server.wait_ready(workers=2).workers()
        assert len(workers) == 2
        asked = 0

        def ask(client: httpx.Client) -> tuple[int, None]:
            nonlocal asked
            asked += 1
            return client.post("/v1/models/m:predict", json={"instances": [0]}).json()["predictions"][0], None

        of_each_worker(server, ask)
        assert server.client.get("/v2").json()["name"] == "mpserve"
        assert server.client.get("/v2/models").json() == {"models": ["m"]}
        tensor = {"name": "rows", "datatype": "INT64", "shape": [2], "data": [0, 0]}
        [output] = server.client.post("/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"]
        assert output["shape"] == [2]
        assert set(output["data"]) <= set(workers)
        sample = 'request_predict_seconds_count{model_name="m"}'
        eventually(lambda: {server.metric(sample) for _ in range(6)} == {asked + 1})  # whichever worker is asked
        assert server.states() == {"loading": 0, "ready": 2, "draining": 0}
        assert {f"slot {slot} model m" in server.log for slot in (0, 1)} == {True}
        assert server.stop() == 0
        assert all(f"stopped in {pid}" in server.log for pid in workers) or "functions.py" in way.command


def test_a_users_hooks_all_run_and_none_of_ours_is_lost(folder: Path) -> None:
    """Slots, metrics and the drain are in the worker class, which no hook replaces."""
    with start(WAYS["gunicorn with a user's configuration"], folder) as server:
        server.wait_ready(workers=2)
        arbiter = server.pid
        first = server.workers()
        kill_and_await_successor(server, first[0])
        later = server.workers()
        assert server.metric("mpserve_worker_restarts_total") == 1
        assert server.stop() == 0
        ran = Counter(tuple(line.split()) for line in (folder / "hooks").read_text().splitlines())
    assert ran == {
        **{(hook, str(arbiter)): 1 for hook in ("on_starting", "when_ready", "on_exit")},
        **{(hook, str(arbiter)): 3 for hook in ("pre_fork", "child_exit")},
        **{(hook, str(pid)): 1 for hook in ("post_fork", "post_worker_init") for pid in {*first, *later}},
        **{("worker_exit", str(pid)): 1 for pid in later},
    }


def test_under_uvicorn_alone_one_process_loads_in_the_lifespan_and_serves(folder: Path) -> None:
    with start(Way((sys.executable, "-m", "uvicorn", "application:app", "--port", "PORT")), folder) as server:
        server.wait_ready()
        assert server.pids_answering("m", 3) == {server.pid}
        eventually(lambda: server.metric('request_predict_seconds_count{model_name="m"}') == 3)
        server.stop()
        assert f"stopped in {server.pid}" in server.log


SCRIPT_WITH_MORE = """
import atexit, os, tempfile
from pathlib import Path
from pid import Pid
from mpserve import ModelServer

def note(what):
    with open("after", "a") as file:
        file.write(f"{what} {os.getpid()}\\n")

class Owner(Pid):
    def load(self):
        atexit.register(note, "worker's own atexit")

atexit.register(note, "atexit")
with tempfile.TemporaryDirectory() as folder:
    Path("folder").write_text(folder)
    try:
        ModelServer(workers=2).start([Owner()])
        note("code")
    finally:
        note("finally")
"""


@pytest.mark.parametrize("through", [(sys.executable,), MPSERVE], ids=["python", "mpserve serve"])
def test_what_comes_after_start_runs_once_in_the_arbiter_and_never_in_a_worker(
    folder: Path, through: tuple[str, ...]
) -> None:
    (folder / "more.py").write_text(SCRIPT_WITH_MORE)
    with start(Way((*through, "more.py", "--http_port=PORT")), folder) as server:
        server.wait_ready(workers=2)
        arbiter, first = server.pid, server.workers()
        psutil.Process(first[0]).terminate()
        await_successor(server, first[0], workers=2)
        assert Path((folder / "folder").read_text()).is_dir(), "a worker that left has taken the arbiter's folder away"
        after_one = (folder / "after").read_text().splitlines()
        assert after_one == [f"worker's own atexit {first[0]}"]
        last = server.workers()
        assert server.stop() == 0
    after = (folder / "after").read_text().splitlines()
    assert sorted(after) == sorted([
        *(f"worker's own atexit {pid}" for pid in {*first, *last}),
        *(f"{what} {arbiter}" for what in ("code", "finally", "atexit")),
    ])  # fmt: skip
    assert not Path((folder / "folder").read_text()).exists()


CONFIG = "from mpserve.gunicorn_config import *\n"
NOT_OURS = "async def app(scope, receive, send):\n    pass\n"
MISTAKES = {
    "no preload": (f"{CONFIG}preload_app = False", "application:app", "set preload_app = True"),
    "reuse_port": (f"{CONFIG}reuse_port = True", "application:app", "set reuse_port = False"),
    "short timeout": (f"{CONFIG}timeout = 2", "application:app", "use 4 or more"),
    "another application": (CONFIG, "other:app", "mpserve.asgi_app([...])"),
    "a WSGI worker": (f"{CONFIG}worker_class = 'sync'", "application:app", "set no worker_class"),
    "a wrong option": (CONFIG, "application:app", "MPSERVE_DEVICES"),
    "a failing hook": (f"{CONFIG}def post_fork(server, worker): raise ValueError('mine')", "application:app", "mine"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "app", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_gunicorn_configuration_that_cannot_work_ends_with_what_to_change(
    folder: Path, config: str, app: str, words: str
) -> None:
    (folder / "mistaken.conf.py").write_text(config)
    (folder / "other.py").write_text(NOT_OURS)
    env = {"MPSERVE_DEVICES": "tpu"} if words == "MPSERVE_DEVICES" else {}
    way = Way((*GUNICORN, "-c", "mistaken.conf.py", app), {"MPSERVE_HTTP_PORT": "PORT", **env})
    with start(way, folder) as server:
        assert server.wait_end() != 0
        assert words in server.log
        assert "Traceback" not in server.log or "mine" in words


def test_gunicorn_with_its_default_worker_says_what_is_missing(folder: Path) -> None:
    with start(Way((*GUNICORN, "-b", "127.0.0.1:PORT", "application:app")), folder) as server:
        assert server.wait_end() != 0
        assert "use -c python:mpserve.gunicorn_config" in server.log
