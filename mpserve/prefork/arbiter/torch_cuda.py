"""Stops torch from initialising CUDA in the arbiter, and names the line that tried to.

All private names of torch that mpserve uses are in this module. Read in torch 2.13.0 and tried with its CPU build:
torch/cuda/__init__.py (``_lazy_init``). The module must not import torch; it uses ``torch.cuda`` if the user's code did.
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

TESTED = "2.13.0"
_TORCH_CUDA = "torch.cuda"
_OWN_CODE = f"{Path(__file__).parents[1]}{os.sep}"


class _Guard:
    """The guarded process, and the ``torch.cuda`` whose ``_lazy_init`` is replaced."""

    pid: int | None = None
    cuda: ModuleType | None = None

    def armed(self) -> bool:
        # Not a flag: a forked child inherits this object and may use CUDA.
        return self.pid == os.getpid()


_guard = _Guard()


def arm() -> None:
    """Raise ``AcceleratorInArbiter`` in code of this process that would initialise CUDA through torch.

    This works before and after torch is imported. Forked children are not affected.
    """
    # Otherwise is_available() and device_count() call cuInit without _lazy_init.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    _guard.pid = os.getpid()
    cuda = sys.modules.get(_TORCH_CUDA)
    if cuda is not None:
        _replace_lazy_init(cuda)
    elif not any(isinstance(finder, _CudaFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CudaFinder())


def disarm() -> None:
    """Allow CUDA again. The replaced function stays and passes every call on."""
    _guard.pid = None


def _replace_lazy_init(cuda: ModuleType) -> None:
    """Replace ``torch.cuda._lazy_init``, which torch's Python and C++ code call by name before they use CUDA.

    The function is never put back, since other modules may have copied its name.
    """
    if _guard.cuda is cuda:
        return
    original = _lazy_init(cuda)

    @functools.wraps(original)
    def guarded_lazy_init() -> Any:
        if _guard.armed():
            raise AcceleratorInArbiter(_where(cuda))
        return original()

    # For example torch.cuda.random has copied the name.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(module, "__dict__", {}).get("_lazy_init") is original:
            module.__dict__["_lazy_init"] = guarded_lazy_init
    _guard.cuda = cuda


def _lazy_init(cuda: ModuleType) -> Callable[[], Any]:
    """The function of torch that initialises CUDA. Raises ConfigurationError if it is not as in ``TESTED``."""
    function = getattr(cuda, "_lazy_init", None)
    if not inspect.isfunction(function) or inspect.signature(function).parameters:
        raise ConfigurationError(
            f"torch {version('torch')} is installed. Its torch.cuda._lazy_init is not as in {TESTED}, so mpserve cannot keep CUDA"
            f" out of the process that it forks the workers from: pip install 'torch=={TESTED}'"
        )
    return function


def is_initialized() -> bool:
    """Whether torch says that CUDA is initialised in this process."""
    cuda = sys.modules.get(_TORCH_CUDA)
    return cuda is not None and bool(cuda.is_initialized())


class _CudaFinder(MetaPathFinder):
    """Replaces ``_lazy_init`` when ``torch.cuda`` is imported, then leaves ``sys.meta_path``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TORCH_CUDA or not _guard.armed():
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        # The loader is changed and not wrapped, since inspect and linecache ask the module's __loader__ for the source.
        loader: Any = spec.loader
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            original(module)
            _replace_lazy_init(module)
            sys.meta_path.remove(self)

        loader.exec_module = exec_module
        return spec


def _where(cuda: ModuleType) -> str:
    """The innermost line outside torch and mpserve, such as ``model.py:12 in load: self.net.to("cuda")``."""
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
