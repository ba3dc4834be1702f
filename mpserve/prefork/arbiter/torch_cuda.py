"""torch's way to CUDA, guarded in the process that forks: the call is stopped before it happens, with its line.

All of torch's private names are in this module. Read in torch 2.13.0 and tried with its CPU build: torch/cuda/__init__.py
(``_lazy_init``). It must not import torch; it looks ``torch.cuda`` up among the modules that somebody else imported.
"""

import functools
import inspect
import linecache
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from mpserve.errors import AcceleratorInArbiter, ConfigurationError

READ = "2.13.0"
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
    """From now on, code in this process that would initialise CUDA through torch gets ``AcceleratorInArbiter``.

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

    Seen with the CPU build of torch 2.13.0 too: ``.cuda()``, ``.to("cuda")``, ``device="cuda"``, ``Module.to``. It is
    never put back: other modules may have copied the name, so the replacement has to be right at all times instead.
    """
    if _guard.cuda is cuda:
        return
    original = _lazy_init(cuda)

    @functools.wraps(original)
    def guarded_lazy_init() -> Any:
        if _guard.armed():
            raise AcceleratorInArbiter(_where(cuda))
        return original()

    # torch.cuda.random copied the name before we came.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(module, "__dict__", {}).get("_lazy_init") is original:
            module.__dict__["_lazy_init"] = guarded_lazy_init
    _guard.cuda = cuda


def _lazy_init(cuda: ModuleType) -> Callable[[], Any]:
    """The function of torch that initialises CUDA.

    Raises:
        ConfigurationError: this torch has none that is called without arguments.
    """
    function = getattr(cuda, "_lazy_init", None)
    if not inspect.isfunction(function) or inspect.signature(function).parameters:
        raise ConfigurationError(
            f"torch {version('torch')} is installed. Its torch.cuda._lazy_init is not as in {READ}, so mpserve cannot keep CUDA"
            f" out of the process that it forks the workers from: pip install 'torch=={READ}'"
        )
    return function


def is_initialized() -> bool:
    """Whether torch says that CUDA is initialised in this process."""
    cuda = sys.modules.get(_TORCH_CUDA)
    return cuda is not None and bool(cuda.is_initialized())


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
