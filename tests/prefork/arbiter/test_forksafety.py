"""What may not reach a fork: CUDA is stopped or found, threads are named, garbage is frozen; another torch is refused."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import forksafety, torch_cuda
from tests.cases import each

pytestmark = pytest.mark.e2e

WAYS = {
    "tensor_to": 'return torch.zeros(1).to("cuda")',
    "tensor_cuda": "return torch.zeros(1).cuda()",
    "factory": 'return torch.zeros(1, device="cuda")',
    "module_to": 'return torch.nn.Linear(1, 1).to("cuda")',
    "current_device": "return torch.cuda.current_device()",
    "copied_name": "return get_rng_state()",
    "swallowed": 'with contextlib.suppress(Exception): torch.zeros(1).to("cuda")',
}
# A user's model file. The line that reaches for CUDA is found by its number.
MODEL = "import contextlib, torch\nfrom torch.cuda.random import get_rng_state\n" + "".join(
    f"def {name}():\n    {line}\n" for name, line in WAYS.items()
)
STOPPED = {
    name: f"model.py:{number} in {name}: {line}" for number, (name, line) in zip(itertools.count(4, 2), WAYS.items())
}

DRIVER = """
import inspect, json, os, sys
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
    for name in sys.argv[2:]:
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

REPOSITORY = Path(forksafety.__file__).parents[3]


def run(script: str, folder: Path, *arguments: str) -> str:
    """What a script prints in a process of its own, which finds the modules of the folder."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(folder)]), "CUDA_VISIBLE_DEVICES": ""}
    environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ["torch first", "torch later"])
def test_every_way_to_cuda_is_stopped_with_the_users_line_until_the_fork(order: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    found = json.loads(run(DRIVER, tmp_path, order, *WAYS))
    assert found["arbiter"] == STOPPED
    for process in ("worker", "disarmed"):  # which meet torch itself
        assert found[process]["swallowed"] == "None"
        assert not set(found[process].values()) & set(STOPPED.values())
        assert found[process]["tensor_to"].startswith(("AssertionError: Torch not compiled with CUDA", "RuntimeError"))
    assert found["alive before"] is None
    assert found["alive after"] == "torch.cuda.is_initialized() is true"  # torch's own word is taken for it
    assert (found["finders left"], found["source readable"]) == ([], True)  # no trace of the hook
    assert found["nvml"] == "1"  # so that is_available() counts without CUDA


IMPORT = """
from mpserve.errors import AcceleratorInArbiter, ConfigurationError
from mpserve.prefork.arbiter import torch_cuda
torch_cuda.arm()
try:
    import early
except AcceleratorInArbiter as error:
    print(error.where)
except ConfigurationError as error:
    print(error)
"""


def test_a_line_at_import_time_is_named(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text('import torch\n\nnet = torch.nn.Linear(1, 1).to(\n    "cuda"\n)\n')
    assert run(IMPORT, tmp_path) == "early.py:3 in <module>: net = torch.nn.Linear(1, 1).to(\n"


def test_the_import_of_another_torch_ends_in_words(tmp_path: Path) -> None:
    (tmp_path / "early.py").write_text("import torch.cuda")
    (tmp_path / "torch" / "cuda").mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    (tmp_path / "torch" / "cuda" / "__init__.py").write_text("_initialise = None\n")
    assert "torch.cuda._lazy_init is not as in" in run(IMPORT, tmp_path)


@each("names", [{}, {"_lazy_init": None}, {"_lazy_init": lambda device: None}])
def test_another_torch_is_refused(names: dict[str, object]) -> None:
    cuda = ModuleType("torch.cuda")
    vars(cuda).update(names)
    with pytest.raises(ConfigurationError, match=r"_lazy_init is not as in .* pip install 'torch=="):
        torch_cuda._replace_lazy_init(cuda)


def test_an_open_cuda_file_is_found_and_refused_and_one_that_nvml_leaves_open_is_not(tmp_path: Path) -> None:
    cuda_file, control = tmp_path / "nvidia-uvm", tmp_path / "nvidiactl"
    cuda_file.touch()
    control.touch()
    with control.open():
        assert forksafety.accelerator_alive(cuda_file) is None
        forksafety.refuse_accelerator(cuda_file)
    with cuda_file.open():
        assert forksafety.accelerator_alive(cuda_file) == f"{cuda_file} is open"
        with pytest.raises(ConfigurationError, match=r"nvidia-uvm is open.*load\(\).*mpserve serve script\.py"):
            forksafety.refuse_accelerator(cuda_file)


THREADS = """
import functools, logging, os, sys, threading
from mpserve.prefork.arbiter import forksafety

logging.basicConfig(stream=sys.stdout, format="%(message)s")
stop = threading.Event()

class Poller(threading.Thread):
    def run(self):
        stop.wait()

def fork(step):
    if not step.startswith("not"):
        forksafety.expect_fork()
    print(step, flush=True)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

forksafety.watch_forks()
forksafety.watch_forks()
fork("no thread")
threading.Thread(target=stop.wait, name="reloader").start()
threading.Thread(target=functools.partial(stop.wait, 60), name="bound").start()
fork("not expected")
fork("expected")
fork("the same threads")
Poller(name="poller").start()
fork("one more")
fork("not expected any more")
stop.set()
"""


def test_threads_alive_at_an_expected_fork_are_named_once(tmp_path: Path) -> None:
    lines = run(THREADS, tmp_path).splitlines()
    warnings = {before: line for before, line in itertools.pairwise(lines) if line.startswith("Threads are")}
    assert list(warnings) == ["expected", "one more"]
    assert len(lines) == 8
    assert "bound (functools.partial), reloader (threading.Event.wait)." in warnings["expected"]
    assert "poller (__main__.Poller)" in warnings["one more"]
    assert "load()" in warnings["one more"]


NATIVE = """
import ctypes, os
from mpserve.prefork.arbiter import native_threads

libc = ctypes.CDLL(None)
thread = ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)
print(native_threads.named())
libc.pthread_setname_np(thread, b"reader-12")
print(native_threads.named())
import numpy
print(len(os.listdir(native_threads.TASKS)), native_threads.named())
import torch
torch.set_num_threads(2)
torch.rand(600, 600) @ torch.rand(600, 600)
print(*sorted(native_threads.named()))
"""


def test_native_threads_are_named_with_their_library_and_those_that_openblas_ends_itself_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pool in ("OMP", "OPENBLAS", "MKL"):
        monkeypatch.setenv(f"{pool}_NUM_THREADS", "2")
    unnamed, named, numpy, torch = run(NATIVE, tmp_path).splitlines()
    assert unnamed == "{'python'}"
    assert named == "{'reader'}"
    assert numpy == "3 {'reader'}"  # Python's own, the reader, and one of OpenBLAS
    assert "omp" in torch
    assert torch.endswith(" reader")


CONNECTIONS = """
import os, socket
from mpserve.prefork.arbiter import connections

socket.setdefaulttimeout(3)
held = []
for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_INET6, ("::1", 0)), (socket.AF_UNIX, "at.sock")):
    door, client = socket.socket(family), socket.socket(family)
    door.bind(address)
    door.listen()
    client.connect(door.getsockname())
    client.setblocking(True)
    held += [door, client]
    print(door.getsockname() if family == socket.AF_UNIX else door.getsockname()[1], client.fileno())
sender = socket.socket(type=socket.SOCK_DGRAM)
sender.connect(("127.0.0.1", 9))
held += [sender, *socket.socketpair()]
before = os.listdir("/proc/self/fd")
print(*sorted(connections.named()), sep=", ")
print(before == os.listdir("/proc/self/fd"), [os.get_blocking(sock.fileno()) for sock in held[1:6:2]])
"""


def test_connections_are_named_and_neither_doors_nor_datagrams_nor_pairs_are(tmp_path: Path) -> None:
    *opened, named, untouched = run(CONNECTIONS, tmp_path).splitlines()
    (four, fd4), (six, fd6), (path, fd) = (line.split() for line in opened)
    assert named == ", ".join(
        [
            f"127.0.0.1:{four} (file descriptor {fd4})",
            f"[::1]:{six} (file descriptor {fd6})",
            f"{path} (file descriptor {fd})",
        ]
    )
    assert untouched == "True [True, True, True]"


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


def test_freezing_collects_what_is_new_and_hides_all_objects_from_the_collector(tmp_path: Path) -> None:
    assert run(FREEZE, tmp_path).split() == ["True"] * 4
