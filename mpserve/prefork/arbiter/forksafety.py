"""Checks the arbiter before it forks a worker: no CUDA, a warning about threads and connections, no garbage.

After a fork every CUDA call fails if the parent has called ``cuInit`` ("Cannot re-initialize CUDA in forked subprocess",
kserve#2690). ``torch_cuda`` stops torch from calling it. ``refuse_accelerator`` finds CUDA that was initialised in another way.

Threads do not survive a fork, and the locks that they hold stay locked. A connection survives in every worker, so that they
read each other's answers. Most threads are harmless, and a connection may never be used again, so ``watch_forks`` only warns.
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
from mpserve.prefork.arbiter import connections, native_threads, torch_cuda

logger = logging.getLogger(__name__)

# cuInit opens this file and keeps it open; NVML does not. /dev/nvidiactl and /dev/nvidia<N> prove nothing: they stay open after
# torch.cuda.is_available() by NVML (torch/cuda/__init__.py never calls nvmlShutdown), which is safe (pytorch#85951).
CUDA_FILE = Path("/dev/nvidia-uvm")


def accelerator_alive(cuda_file: Path = CUDA_FILE) -> str | None:
    """The reason to think that CUDA is initialised in this process, or None.

    This finds what ``torch_cuda`` cannot stop, such as ``pin_memory``, ``set_device``, another framework, or a library that
    calls ``cuInit`` itself (vllm#32611).
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
        except OSError:  # closed meanwhile, such as the descriptor of this listing
            continue


def refuse_accelerator(cuda_file: Path = CUDA_FILE) -> None:
    """Raise ConfigurationError if CUDA is initialised in this process."""
    reason = accelerator_alive(cuda_file)
    if reason is not None:
        raise ConfigurationError(
            f"CUDA is initialised in this process ({reason}), so no worker that is forked from it could use a GPU. "
            "Move the code that uses the GPU from the import and the constructor to the model's load(), which runs in every "
            "worker; or run the script with `mpserve serve script.py`, which stops such a call before it happens and "
            "names its line."
        )


class _Fork:
    is_expected = False
    reported: frozenset[str] = frozenset()  # what was named in a warning


@functools.cache
def watch_forks() -> None:
    """Warn once about each thread and connection that exists at a fork announced by ``expect_fork``. May be called again."""
    os.register_at_fork(before=_before_fork)


def expect_fork() -> None:
    """Announce that the arbiter is about to fork a worker. Call this before each fork."""
    _Fork.is_expected = True


def _before_fork() -> None:
    if not _Fork.is_expected:  # the user's code may fork too
        return
    _Fork.is_expected = False
    _warn(
        {_describe(thread) for thread in threading.enumerate() if thread is not threading.current_thread()},
        "Threads are running in the arbiter while it forks a worker: %s. They do not exist in the worker, and a lock "
        "that a thread holds now stays locked there. Start threads in the model's load(), which runs in every worker.",
    )
    _warn(
        native_threads.named(),
        "Libraries have threads of their own in the arbiter while it forks a worker: %s. They do not exist in the worker, "
        "where a call that waits for them hangs. Use such a library first in the model's load(), or in the function "
        "load(device), which run in every worker; or start with --preload=no, which imports the model there too.",
    )
    _warn(
        connections.named(),
        "The arbiter has open connections while it forks a worker: %s. All workers share them and can read each other's "
        "answers. Connect in the model's load(), which runs in every worker, or close the connection before.",
    )


def _warn(things: set[str], words: str) -> None:
    if not things <= _Fork.reported:
        _Fork.reported |= things
        logger.warning(words, ", ".join(sorted(things)))


def _describe(thread: threading.Thread) -> str:
    # CPython keeps Thread._target while the thread runs. A subclass with its own run() has none.
    target = getattr(thread, "_target", None) or type(thread)
    function = getattr(target, "__qualname__", type(target).__qualname__)
    return f"{thread.name} ({getattr(target, '__module__', '?')}.{function})"


def freeze() -> None:
    """Exclude all objects of this process from garbage collection, just before a fork.

    A collection writes to the header of every object, which makes each worker copy the arbiter's pages (frappe#21474). Garbage
    is collected first, since it would be kept for ever otherwise: after a HUP, what gunicorn has read its options with. This
    looks only at objects that were made since the last call.
    """
    gc.collect()
    gc.freeze()
