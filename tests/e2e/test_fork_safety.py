"""What may not happen in the arbiter before the fork, and what becomes of it: CUDA is put off, or refused; threads are named.

The CPU build of torch takes the same way to CUDA and fails at its end, so a model here asks for "cuda" in the arbiter, which
is stopped before, and for its worker's device otherwise.
"""

import shutil
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.running import Server, eventually, free_port, running

MODELS = Path(__file__).parents[1] / "models"
MPSERVE = (sys.executable, "-m", "mpserve", "serve")

HEAD = """
import os
import torch
from mpserve import Model, ModelServer

os.environ.setdefault("MASTER", str(os.getpid()))

def device():
    return "cuda" if os.environ["MASTER"] == str(os.getpid()) else "cpu"

class Net(Model):
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), self.where, float(self.net.weight.sum())]}

"""

IN_LOAD = """
class Early(Net):
    def __init__(self, name):
        super().__init__(name)
        self.load()

    def load(self):
        self.where = os.getpid()
        self.net = torch.nn.Linear(2, 1)
        self.net.to(device())  # here
        self.ready = True

ModelServer(workers=2).start([Early("m")])
"""
IN_CONSTRUCTOR = """
class Early(Net):
    name = "m"

    def __init__(self):
        super().__init__()
        self.where = os.getpid()
        self.net = torch.nn.Linear(2, 1).to(device())  # here
"""
IN_PRELOAD = """
class Early(Net):
    name = "m"

    def preload(self):
        self.where = os.getpid()
        self.net = torch.nn.Linear(2, 1, device=device())  # here
"""
AT_IMPORT = """
net = torch.nn.Linear(2, 1).to(device())  # here

class Early(Net):
    name = "m"
    net = net
    where = os.getpid()
"""
PLACES = {
    "load() that the script's constructor calls": ("model.py", IN_LOAD, "load()"),
    "import of the file": ("model.py:Early", AT_IMPORT, "code"),
}


@pytest.mark.parametrize(("target", "source", "stage"), PLACES.values(), ids=PLACES.keys())
def test_cuda_reached_in_the_arbiter_is_put_off_to_the_workers_with_one_line_that_names_it(
    tmp_path: Path, target: str, source: str, stage: str
) -> None:
    with serving_two(tmp_path, HEAD + source, target) as server:
        server.wait_ready(workers=2)
        seen = answers_of_two(server)
        assert all(loaded_in == pid for pid, (loaded_in, _) in seen.items())
        [line] = [line for line in server.log.splitlines() if "CUDA" in line]
    number = next(n for n, text in enumerate((HEAD + source).splitlines(), 1) if "# here" in text)
    assert f"model.py:{number} in " in line
    assert stage in line.partition("reached for CUDA")[0]
    assert "in each worker instead" in line
    assert "Traceback" not in server.log


def serving_two(folder: Path, source: str, target: str) -> AbstractContextManager[Server]:
    (folder / "model.py").write_text(source)
    port = free_port()
    flags = ("--workers=2", f"--http_port={port}", "--termination_log=termination")
    return running([*MPSERVE, target, *flags], folder, port)


def answers_of_two(server: Server) -> dict[int, list[object]]:
    """What both workers answer, by their pid."""
    answers: dict[int, list[object]] = {}

    def ask() -> bool:
        pid, *rest = server.predict("m", [0], headers={"connection": "close"}).json()["predictions"]
        answers[pid] = rest
        return len(answers) == 2

    eventually(ask, every=0)
    return answers


def test_an_object_that_reached_for_cuda_in_a_script_is_refused_with_its_line_and_the_remedy(tmp_path: Path) -> None:
    source = HEAD + IN_CONSTRUCTOR + "\nModelServer().start([Early()])\n"
    with serving_two(tmp_path, source, "model.py") as server:
        assert server.wait_end() == 2
        [line] = [line for line in server.log.splitlines() if line]
        assert "self.net = torch.nn.Linear(2, 1).to(device())  # here" in line
        assert "move this line to the model's load()" in line


CUDA_IS_UP = "torch.cuda._initialized = True  # what torch sets when cuInit has succeeded\n"


def test_a_script_in_whose_process_cuda_is_up_is_refused_with_the_remedy_and_forks_nothing(tmp_path: Path) -> None:
    source = IN_PRELOAD + "ModelServer().start([Early()])"
    (tmp_path / "script.py").write_text(HEAD + CUDA_IS_UP + source.replace("device()", '"cpu"'))
    (tmp_path / "termination").touch()
    port = free_port()
    command = [sys.executable, "script.py", f"--http_port={port}", "--termination_log=termination"]
    with running(command, tmp_path, port) as server:
        assert server.wait_end() != 0
        assert "CUDA is initialised in this process" in server.log
        assert "mpserve serve script.py" in server.log
        assert "Booting worker" not in server.log
        assert "Traceback" not in server.log
    assert "Move the code that uses the GPU" in (tmp_path / "termination").read_text()


THREADED = """
import os, threading, time
from mpserve import Model

class Threaded(Model):
    name = "m"
    def preload(self):
        threading.Thread(target=time.sleep, args=(3600,), name="left-running", daemon=True).start()
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), threading.active_count()]}
"""


def test_a_thread_left_running_in_the_arbiter_is_named_once_and_the_server_serves(tmp_path: Path) -> None:
    with serving_two(tmp_path, THREADED, "model.py") as server:
        server.wait_ready(workers=2)
        assert len(answers_of_two(server)) == 2
        [line] = [line for line in server.log.splitlines() if "left-running" in line]
        assert "WARN" in line
        assert "Start threads in the model's load()" in line


def test_the_arbiter_keeps_to_one_native_thread_and_the_workers_compute_on_theirs(tmp_path: Path) -> None:
    """A multiplication on two threads in the arbiter would leave every worker hanging at its next one."""
    shutil.copy(MODELS / "pid.py", tmp_path)
    source = """
import os, torch
from mpserve import Model

class Busy(Model):
    name = "m"
    def preload(self):
        self.matrix = torch.rand(600, 600)
        self.arbiter = [torch.get_num_threads(), float((self.matrix @ self.matrix).sum())]
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), *self.arbiter, torch.get_num_threads(), float((self.matrix @ self.matrix).sum())]}
"""
    (tmp_path / "model.py").write_text(source)
    port = free_port()
    with running([*MPSERVE, "model.py", "--threads=2", f"--http_port={port}"], tmp_path, port) as server:
        server.wait_ready(workers=1)
        _, in_arbiter, expected, in_worker, got = server.predict("m", [0]).json()["predictions"]
        assert (in_arbiter, in_worker) == (1, 2)
        assert got == pytest.approx(expected, rel=1e-4)
