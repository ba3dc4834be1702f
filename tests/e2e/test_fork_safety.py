"""What may not happen in the arbiter before the fork, and what becomes of it: CUDA is put off, or refused; threads are named.

The CPU build of torch takes the same way to CUDA and fails at its end, so a model here asks for "cuda" in the arbiter, which
is stopped before, and for its worker's device otherwise.
"""

import sys
from pathlib import Path

import pytest

from tests.cases import each
from tests.e2e.workers import kill_and_await_successor, predictions_of_each_worker
from tests.running import eventually, free_port, running, serving

FLAGS = ("--workers=2", "--termination_log=termination")

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
    def __init__(self):
        super().__init__("m")
        self.net = torch.nn.Linear(2, 1).to(device())  # here

ModelServer().start([Early()])
"""
AT_IMPORT = """
net = torch.nn.Linear(2, 1).to(device())  # here

class Early(Net):
    name = "m"
    net = net
    where = os.getpid()
"""
UP_IN_A_SCRIPT = """
torch.cuda._initialized = True  # what torch sets when cuInit has succeeded
ModelServer().start([Net("m")])
"""


@pytest.mark.parametrize(("target", "source", "stage"), [
    pytest.param("model.py", IN_LOAD, "load()", id="load() that the script's constructor calls"),
    pytest.param("model.py:Early", AT_IMPORT, "code", id="import of the file"),
])  # fmt: skip
def test_cuda_reached_in_the_arbiter_is_put_off_to_the_workers_with_one_line_that_names_it(
    tmp_path: Path, target: str, source: str, stage: str
) -> None:
    with serving(tmp_path, HEAD + source, *FLAGS, target=target) as server:
        answers = predictions_of_each_worker(server.wait_ready(workers=2))
        assert all(loaded_in == pid for pid, (loaded_in, _) in answers.items())
        [line] = [line for line in server.log.splitlines() if "CUDA" in line]
    number = next(n for n, text in enumerate((HEAD + source).splitlines(), 1) if "# here" in text)
    assert f"model.py:{number} in " in line
    assert stage in line.partition("reached for CUDA")[0]
    assert "in each worker instead" in line
    assert "Traceback" not in server.log


def test_an_object_that_reached_for_cuda_in_a_script_is_refused_with_its_line_and_the_remedy(tmp_path: Path) -> None:
    with serving(tmp_path, HEAD + IN_CONSTRUCTOR, *FLAGS) as server:
        assert server.wait_end() == 2
        [line] = [line for line in server.log.splitlines() if line]
        assert "self.net = torch.nn.Linear(2, 1).to(device())  # here" in line
        assert "move this line to the model's load()" in line


def test_a_script_in_whose_process_cuda_is_up_is_refused_with_the_remedy_and_forks_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(HEAD + UP_IN_A_SCRIPT)
    (tmp_path / "termination").touch()
    port = free_port()
    with running([sys.executable, "script.py", f"--http_port={port}", *FLAGS], tmp_path, port) as server:
        assert server.wait_end() != 0
        assert "CUDA is initialised in this process" in server.log
        assert "mpserve serve script.py" in server.log
        assert "Booting worker" not in server.log
        assert "Traceback" not in server.log
    assert "Move the code that uses the GPU" in (tmp_path / "termination").read_text()


BUSY = """
import os, socket, threading, time, torch
from mpserve import Model

ARBITER = os.getpid()

class Busy(Model):
    name = "m"
    def preload(self):
        threading.Thread(target=time.sleep, args=(3600,), name="left-running", daemon=True).start()
        door = socket.create_server(("127.0.0.1", 0))
        self.ends = socket.create_connection(door.getsockname()), door.accept()[0]
        self.matrix = torch.rand(600, 600)
        self.arbiter = [torch.get_num_threads(), self.work()]
    def work(self):
        return float((self.matrix @ self.matrix).sum())
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), *self.arbiter, torch.get_num_threads(), self.work()]}
"""


def test_a_thread_left_running_in_the_arbiter_is_named_and_native_ones_are_kept_for_the_workers(tmp_path: Path) -> None:
    """A multiplication on two threads in the arbiter would leave every worker hanging at its next one."""
    with serving(tmp_path, BUSY, "--threads=2", *FLAGS) as server:
        answers = predictions_of_each_worker(server.wait_ready(workers=2))
        [line] = [line for line in server.log.splitlines() if "left-running" in line]
        [connections] = [line for line in server.log.splitlines() if "open connections" in line]
    assert "WARN" in line
    assert connections.count("127.0.0.1:") == connections.count("file descriptor") == 2
    assert "Libraries have threads" not in server.log
    assert "Start threads in the model's load()" in line
    for in_arbiter, expected, in_worker, got in answers.values():
        assert (in_arbiter, in_worker) == (1, 2)
        assert got == pytest.approx(expected, rel=1e-4)


def test_without_preload_each_worker_imports_and_preloads_the_model_and_nothing_is_to_be_named(tmp_path: Path) -> None:
    alone = BUSY.replace("*self.arbiter, torch.get_num_threads(), self.work()", "ARBITER")
    with serving(tmp_path, alone, "--preload=no", *FLAGS) as server:
        answers = predictions_of_each_worker(server.wait_ready(workers=2))
        assert all([pid] == imported_in for pid, imported_in in answers.items())
        assert "WARN" not in server.log


HANDLES = """
import logging, os, threading
from mpserve import Model

class Handle:
    def __init__(self, name):
        self.name = name
    def __del__(self):
        logging.warning("%s destroyed in %s", self.name, threading.current_thread().name)

class Holder(Model):
    name = "m"
    def preload(self):
        self.first = Handle("preloaded")
    def load(self):
        self.first, self.second = None, Handle("loaded")
        self.itself = self.load if os.path.exists("broken") else None
        if os.path.exists("broken"):
            raise OSError("broken")
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid()]}
"""


def test_a_replaced_model_is_destroyed_in_its_own_thread_and_what_was_preloaded_in_no_worker(tmp_path: Path) -> None:
    def destroyed() -> list[str]:
        return [line.rpartition("root: ")[2] for line in server.log.splitlines() if " destroyed in " in line]

    with serving(tmp_path, HANDLES, *FLAGS) as server:
        server.wait_ready(workers=2)
        load = "/v2/repository/models/m/load"
        assert server.client.post(load).status_code == 200
        assert server.predict("m", [0]).status_code == 200
        eventually(lambda: len(destroyed()) >= 4)
        # The first is the new model's own, which its load() lets go of: it was preloaded in the worker.
        assert (
            sorted(destroyed()) == ["loaded destroyed in mpserve-m-0"] * 2 + ["preloaded destroyed in mpserve-m-0"] * 2
        )
        (tmp_path / "broken").touch()
        assert server.client.post(load).status_code != 200
        eventually(lambda: len(destroyed()) == 8)
        assert {line.partition(" in ")[2] for line in destroyed()} == {"mpserve-m-0"}


SAMPLER = """
import os, random
import numpy, torch
from mpserve import Model

random.seed(1), numpy.random.seed(1), torch.manual_seed(1)

class Sampler(Model):
    name = "m"
    def preload(self):
        self.own = random.Random(1)
    def load(self):
        self.drawn = [
            random.getrandbits(48), self.own.getrandbits(48), int(numpy.random.randint(2**48)), int(torch.randint(2**48, ())),
        ]
    def predict(self, payload, headers=None):
        return {"predictions": [os.getpid(), *self.drawn]}
"""  # fmt: skip


@each("flags, same", [((), {1}), (("--reseed=no",), {1, 2, 3})])
def test_workers_draw_different_numbers_in_load_and_so_does_a_successor(
    tmp_path: Path, flags: tuple[str, ...], same: set[int]
) -> None:
    """Only a generator of the model's own draws the same numbers; without the seeding, numpy's and torch's do too."""
    with serving(tmp_path, SAMPLER, "--workers=2", *flags) as server:
        drawn = predictions_of_each_worker(server.wait_ready(workers=2))
        kill_and_await_successor(server, next(iter(drawn)))
        drawn |= predictions_of_each_worker(server)
        assert len(drawn) == 3
        different = [len(set(numbers)) for numbers in zip(*drawn.values(), strict=True)]
        assert different == [1 if number in same else 3 for number in range(4)]
