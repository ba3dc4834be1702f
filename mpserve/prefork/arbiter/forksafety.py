"""Nothing reaches a fork that cannot survive one: no CUDA, no unnoticed threads, no garbage.

CUDA does not survive: in the child of a process that has called ``cuInit`` every CUDA call fails ("Cannot re-initialize
CUDA in forked subprocess", kserve#2690). Two nets keep it out of the arbiter. While the user's code is preloaded,
torch's one way to CUDA is guarded (``torch_cuda``). Before the first fork this module searches the process for CUDA that
came in some other way (``refuse_accelerator``).

Threads do not survive either, and the locks they hold stay locked, but most are harmless: a live Python thread is
named in a warning and no more (``watch_threads``). Native threads are not counted: numpy alone starts one.

This module must not import a numerical framework.
"""

import functools
import gc
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import torch_cuda

logger = logging.getLogger(__name__)

# cuInit opens this file and keeps it open; NVML does not need it. The other files, /dev/nvidiactl and /dev/nvidia<N>,
# say nothing: torch.cuda.is_available() leaves them open when it counts by NVML (torch/cuda/__init__.py calls nvmlInit
# and never nvmlShutdown), and that is the count which does not spoil a fork (pytorch#85951).
CUDA_FILE = Path("/dev/nvidia-uvm")


def accelerator_alive(cuda_file: Path = CUDA_FILE) -> str | None:
    """What shows that CUDA is initialised in this process, in words, or None.

    The second net: it sees the ways that do not pass the guard, such as ``pin_memory``, ``set_device``, another
    framework, or a library that calls ``cuInit`` itself (vllm#32611).
    """
    if torch_cuda.is_initialized():
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
