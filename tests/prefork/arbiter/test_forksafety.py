"""What may not reach a fork: CUDA is stopped or found, threads are named, garbage is frozen."""

import gc
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import forksafety

pytestmark = pytest.mark.e2e

# A user's model file. The line that reaches for CUDA is found by its number.
MODEL = """\
import torch
from torch.cuda.random import get_rng_state


def tensor_to():
    return torch.zeros(1).to("cuda")


def tensor_cuda():
    return torch.zeros(1).cuda()


def factory():
    return torch.zeros(1, device="cuda")


class Model:
    def load(self):
        self.net = torch.nn.Linear(1, 1)
        self.net.to("cuda")


def module_to():
    Model().load()


def current_device():
    return torch.cuda.current_device()


def copied_name():
    return get_rng_state()


def swallowed():
    try:
        torch.zeros(1).to("cuda")
    except Exception:
        return "served from the CPU without a word"
"""

DRIVER = """
import importlib, inspect, json, os, sys
if sys.argv[1] == "torch first":
    import torch
from mpserve.errors import AcceleratorInArbiter
from mpserve.prefork.arbiter import forksafety
from mpserve.prefork.arbiter import torch_cuda

torch_cuda.arm()
torch_cuda.arm()
import model, torch

def outcomes():
    seen = {}
    for name in ("tensor_to", "tensor_cuda", "factory", "module_to", "current_device", "copied_name", "swallowed"):
        try:
            seen[name] = repr(getattr(model, name)())
        except AcceleratorInArbiter as error:
            seen[name] = error.where
        except BaseException as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen

found = {"arbiter": outcomes()}
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    with open(writing, "w") as pipe:
        json.dump(outcomes(), pipe)
    os._exit(0)
os.close(writing)
with open(reading) as pipe:
    found["worker"] = json.load(pipe)
os.waitpid(pid, 0)
torch_cuda.disarm()
found["disarmed"] = outcomes()
found["alive before"] = forksafety.accelerator_alive()
# What torch sets at the end of its own initialisation, which a build without CUDA cannot reach.
torch.cuda._initialized = True
found["alive after"] = forksafety.accelerator_alive()
found["finders left"] = [type(f).__name__ for f in sys.meta_path if type(f).__module__ == torch_cuda.__name__]
found["source readable"] = "def is_available" in inspect.getsource(torch.cuda)
found["nvml"] = os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
print(json.dumps(found))
"""

STOPPED = {
    "tensor_to": 'model.py:6 in tensor_to: return torch.zeros(1).to("cuda")',
    "tensor_cuda": "model.py:10 in tensor_cuda: return torch.zeros(1).cuda()",
    "factory": 'model.py:14 in factory: return torch.zeros(1, device="cuda")',
    "module_to": 'model.py:20 in load: self.net.to("cuda")',
    "current_device": "model.py:28 in current_device: return torch.cuda.current_device()",
    "copied_name": "model.py:32 in copied_name: return get_rng_state()",
    "swallowed": 'model.py:37 in swallowed: torch.zeros(1).to("cuda")',
}

REPOSITORY = Path(forksafety.__file__).parents[3]


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script that calls mpserve, in a process of its own that has ``folder`` as its current directory."""
    path = os.pathsep.join([str(REPOSITORY), str(folder)])
    environ = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module", params=["torch first", "torch later"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a user's model met in an armed process, its child, and after ``disarm``."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "model.py").write_text(MODEL)
    result: dict[str, object] = json.loads(run(DRIVER, folder, request.param).stdout)
    return result


@pytest.mark.parametrize("way", STOPPED)
def test_every_way_to_cuda_is_stopped_with_the_users_line(found: dict[str, dict[str, str]], way: str) -> None:
    assert found["arbiter"][way] == STOPPED[way]


@pytest.mark.parametrize("process", ["worker", "disarmed"])
def test_a_child_and_a_disarmed_process_meet_torch_itself(found: dict[str, dict[str, str]], process: str) -> None:
    assert found[process]["swallowed"] == "'served from the CPU without a word'"
    assert not set(found[process].values()) & set(STOPPED.values())
    assert found[process]["tensor_to"].startswith(("AssertionError: Torch not compiled with CUDA", "RuntimeError"))


def test_the_import_hook_leaves_no_trace(found: dict[str, object]) -> None:
    assert found["finders left"] == []
    assert found["source readable"] is True


def test_is_available_is_made_to_count_without_cuda(found: dict[str, object]) -> None:
    assert found["nvml"] == "1"


def test_torchs_own_word_is_taken_for_cuda_being_alive(found: dict[str, object]) -> None:
    assert found["alive before"] is None
    assert found["alive after"] == "torch.cuda.is_initialized() is true"


def test_a_line_at_import_time_is_named(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text('import torch\n\nnet = torch.nn.Linear(1, 1).to(\n    "cuda"\n)\n')
    script = """
from mpserve.errors import AcceleratorInArbiter
from mpserve.prefork.arbiter import torch_cuda
torch_cuda.arm()
try:
    import early
except AcceleratorInArbiter as error:
    print(error.where)
"""
    assert run(script, tmp_path).stdout == "early.py:3 in <module>: net = torch.nn.Linear(1, 1).to(\n"


def test_an_open_cuda_file_is_found_and_refused(tmp_path: Path) -> None:
    cuda_file = tmp_path / "nvidia-uvm"
    cuda_file.touch()
    assert forksafety.accelerator_alive(cuda_file) is None
    forksafety.refuse_accelerator(cuda_file)
    with cuda_file.open():
        assert forksafety.accelerator_alive(cuda_file) == f"{cuda_file} is open"
        with pytest.raises(ConfigurationError, match=r"nvidia-uvm is open.*load\(\).*mpserve serve script\.py"):
            forksafety.refuse_accelerator(cuda_file)


def test_the_files_that_nvml_leaves_open_are_no_sign_of_cuda(tmp_path: Path) -> None:
    control = tmp_path / "nvidiactl"
    control.touch()
    with control.open():
        assert forksafety.accelerator_alive(tmp_path / "nvidia-uvm") is None


THREADS = """
import functools, logging, os, sys, threading
from mpserve.prefork.arbiter import forksafety

logging.basicConfig(stream=sys.stdout, format="%(message)s")
stop = threading.Event()

class Poller(threading.Thread):
    def run(self):
        stop.wait()

def fork(step):
    print(step, flush=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

forksafety.watch_threads()
forksafety.watch_threads()
forksafety.expect_fork()
fork("no thread")
threads = [
    threading.Thread(target=stop.wait, name="reloader"),
    threading.Thread(target=functools.partial(stop.wait, 60), name="bound"),
    Poller(name="poller"),
]
for thread in threads[:2]:
    thread.start()
fork("not expected")
forksafety.expect_fork()
fork("expected")
forksafety.expect_fork()
fork("the same threads")
threads[2].start()
forksafety.expect_fork()
fork("one more")
fork("used up")
stop.set()
"""


def test_threads_alive_at_an_expected_fork_are_named_once(tmp_path: Path) -> None:
    lines = run(THREADS, tmp_path).stdout.splitlines()
    warnings = {before: line for before, line in itertools.pairwise(lines) if line.startswith("Threads are")}
    assert list(warnings) == ["expected", "one more"]
    assert len(lines) == 8
    assert "bound (functools.partial), reloader (threading.Event.wait)." in warnings["expected"]
    assert "poller (__main__.Poller)" in warnings["one more"]
    assert "load()" in warnings["one more"]


FREEZE = """
import gc, weakref
from mpserve.prefork.arbiter import forksafety

class Ring:
    pass

def ring():
    thing = Ring()
    thing.thing = thing
    return weakref.ref(thing)

gc.disable()
first = ring()
forksafety.freeze()
frozen = gc.get_freeze_count()
second = ring()
forksafety.freeze()
print(first() is None, second() is None, 0 < frozen < gc.get_freeze_count(), len(gc.get_objects()) < 10)
"""


def test_freezing_collects_once_and_hides_all_objects_from_the_collector(tmp_path: Path) -> None:
    assert run(FREEZE, tmp_path).stdout.split() == ["True", "False", "True", "True"]
    assert gc.get_freeze_count() == 0
