"""Nothing reaches a fork that cannot survive one: no CUDA, no unnoticed threads, no garbage.

CUDA does not survive: in the child of a process that has called ``cuInit`` every CUDA call fails ("Cannot re-initialize
CUDA in forked subprocess", kserve#2690). Two nets keep it out of the arbiter. While the user's code is preloaded,
torch's one door to CUDA is guarded, and the call is stopped before it happens, with its line (``arm``). Before the
first fork the process is searched for CUDA that came in some other way (``refuse_accelerator``).

Threads do not survive either, and the locks they hold stay locked, but most are harmless: a live Python thread is
named in a warning and no more (``watch_threads``). Native threads are not counted: numpy alone starts one.

This module must not import a numerical framework; it looks up torch among the modules that somebody else imported.
"""

import functools
import gc
import linecache
import logging
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from mpserve.errors import AcceleratorInMaster, ConfigurationError

logger = logging.getLogger(__name__)

# cuInit opens this file and keeps it open; NVML does not need it. The other files, /dev/nvidiactl and /dev/nvidia<N>,
# say nothing: torch.cuda.is_available() leaves them open when it counts by NVML (torch/cuda/__init__.py calls nvmlInit
# and never nvmlShutdown), and that is the count which does not spoil a fork (pytorch#85951).
CUDA_FILE = Path("/dev/nvidia-uvm")

_TORCH_CUDA = "torch.cuda"
_OWN_CODE = f"{Path(__file__).parents[1]}{os.sep}"


class _Guard:
    """Which process is guarded, and the torch.cuda that has been fitted with the guard."""

    pid: int | None = None
    cuda: ModuleType | None = None

    def armed(self) -> bool:
        # A forked child inherits this object, and is free to use CUDA: hence the pid and not a flag.
        return self.pid == os.getpid()


_guard = _Guard()


def arm() -> None:
    """From now on, code in this process that would initialise CUDA through torch gets ``AcceleratorInMaster``.

    Works whether torch is imported already or comes later. Children forked from here are not affected.
    """
    # is_available() and device_count() would call cuInit otherwise, and do not pass the door that is guarded.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _guard.pid = os.getpid()
    cuda = sys.modules.get(_TORCH_CUDA)
    if cuda is not None:
        _fit(cuda)
    elif not any(isinstance(finder, _CudaFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CudaFinder())


def disarm() -> None:
    """End what ``arm`` began. The guard stays fitted and lets every call through."""
    _guard.pid = None


def _fit(cuda: ModuleType) -> None:
    """Replace ``torch.cuda._lazy_init``, which torch's Python and C++ code both call by name before they use CUDA.

    Seen with the CPU build of torch 2.13 too: ``.cuda()``, ``.to("cuda")``, ``device="cuda"``, ``Module.to``. It is
    never put back: other modules may have copied the name, so the replacement has to be right at all times instead.
    """
    if _guard.cuda is cuda:
        return
    original = cuda._lazy_init

    @functools.wraps(original)
    def guarded_lazy_init() -> Any:
        if _guard.armed():
            raise AcceleratorInMaster(_where(cuda))
        return original()

    # torch.cuda.random copied the name before we came.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(module, "__dict__", {}).get("_lazy_init") is original:
            module.__dict__["_lazy_init"] = guarded_lazy_init
    _guard.cuda = cuda


class _CudaFinder(MetaPathFinder):
    """Fits the guard to ``torch.cuda`` as soon as its code has run, then leaves ``sys.meta_path``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TORCH_CUDA or not _guard.armed():
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        # The loader is changed and not wrapped: it stays the module's __loader__, which inspect and linecache ask
        # for the source.
        loader: Any = spec.loader
        run = loader.exec_module

        def run_then_fit(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            _fit(module)
            sys.meta_path.remove(self)

        loader.exec_module = run_then_fit
        return spec


def _where(cuda: ModuleType) -> str:
    """``model.py:12 in load: self.net.to("cuda")``: the innermost line that is neither torch's nor mpserve's."""
    torch_code = f"{Path(str(cuda.__file__)).parents[1]}{os.sep}"
    for frame in _frames():
        if not frame.f_code.co_filename.startswith((torch_code, _OWN_CODE, "<frozen importlib")):
            break
    code = frame.f_code
    source = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals).strip()
    file = Path(code.co_filename)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    return f"{file}:{frame.f_lineno} in {code.co_name}: {source}"


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def accelerator_alive(cuda_file: Path = CUDA_FILE) -> str | None:
    """What shows that CUDA is initialised in this process, in words, or None.

    The second net: it sees the ways that do not pass the guard, such as ``pin_memory``, ``set_device``, another
    framework, or a library that calls ``cuInit`` itself (vllm#32611).
    """
    cuda = sys.modules.get(_TORCH_CUDA)
    if cuda is not None and cuda.is_initialized():
        return "torch.cuda.is_initialized() is true"
    if any(target.startswith(str(cuda_file)) for target in _open_files()):
        return f"{cuda_file} is open"
    return None


def _open_files() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            yield str(descriptor.readlink())
        except OSError:  # closed in between, as the descriptor of this very listing is
            continue


def refuse_accelerator(cuda_file: Path = CUDA_FILE) -> None:
    """Raise ``ConfigurationError`` if CUDA is initialised in this process, which must not be forked then."""
    reason = accelerator_alive(cuda_file)
    if reason is not None:
        raise ConfigurationError(
            f"CUDA is initialised in this process ({reason}), so no worker that is forked from it could use a GPU. "
            "Move what touches the GPU from the import and the constructor to the model's load(), which runs in every "
            "worker; or run the script with `mpserve serve script.py`, which stops such a call before it happens and "
            "names its line."
        )


class _ThreadWatch:
    """Says once for each thread that it was alive in the arbiter when a worker was forked."""

    registered = False
    expected = False

    def __init__(self) -> None:
        self._named: set[str] = set()

    def before_fork(self) -> None:
        # Forks of the user's code, such as those of multiprocessing, are none of our business.
        if not self.expected:
            return
        self.expected = False
        threads = {_describe(thread) for thread in threading.enumerate() if thread is not threading.current_thread()}
        if threads <= self._named:
            return
        self._named |= threads
        logger.warning(
            "Threads are running in the arbiter while it forks a worker: %s. A worker has none of them, and a lock "
            "that one of them holds now stays locked there. Start threads in the model's load(), which runs in every "
            "worker.",
            ", ".join(sorted(threads)),
        )


_watch = _ThreadWatch()


def watch_threads() -> None:
    """Name, in one warning, the Python threads that are alive at a fork announced by ``expect_fork``.

    May be called again. An exception in a fork handler is printed by Python and goes no further (os.register_at_fork).
    """
    if not _watch.registered:
        _watch.registered = True
        os.register_at_fork(before=_watch.before_fork)


def expect_fork() -> None:
    """To be called by the arbiter just before it forks a worker; holds for one fork."""
    _watch.expected = True


def _describe(thread: threading.Thread) -> str:
    # Thread._target is CPython's, and is there while the thread runs; a subclass with its own run() has none.
    target = getattr(thread, "_target", None) or type(thread)
    function = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{thread.name} ({getattr(target, '__module__', '?')}.{function})"


def freeze() -> None:
    """Put all objects of this process out of the garbage collector's sight, just before a fork.

    A collection writes to the header of every object it looks at, and so takes a private copy of each page in each
    worker: 31 % of the memory of 24 workers (frappe#21474). The first call collects garbage, which would be kept for
    ever otherwise; later calls cost nothing.
    """
    _collect_once()
    gc.freeze()


@functools.cache
def _collect_once() -> None:
    gc.collect()
