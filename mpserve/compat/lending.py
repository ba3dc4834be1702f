"""Lends the kserve SDK's module names to scripts that were written for it, so that they run unchanged.

``import kserve`` finds an empty module. When a script uses a name of it, the object in the table of names is imported. A
name that is not in the table comes from the SDK if that is installed, such as its clients. Otherwise it raises an error with
the reason.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from mpserve.compat.names import NAMES, REFUSED, UNSERVED

_SDK = "kserve"
_ROOTS = {module.partition(".")[0] for module in NAMES}
_GUIDE = "docs/coming-from/kserve.md"


def lend(before_sdk: bool = True) -> None:
    """Lend the names of packages that are not installed. With ``before_sdk``, lend those of kserve even if it is installed: the
    SDK then gives the names that mpserve does not have.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    missing = {root for root in _ROOTS if find_spec(root) is None}
    sys.meta_path.insert(0, _Finder(missing | {_SDK} if before_sdk else missing, missing))


def wrap(app: Any) -> Any:
    """Wrap the ASGI application in ``kserve.model_server.app``, if a script has imported that."""
    application = sys.modules.get("mpserve.compat.application")
    return app if application is None else application.wrap(app)


class _Finder(MetaPathFinder):
    """Finds the modules of the packages ``roots``. ``missing``: those of them that are not installed."""

    def __init__(self, roots: set[str], missing: set[str]) -> None:
        self._roots = roots
        self._missing = missing

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        root = fullname.partition(".")[0]
        if root not in self._roots:
            return None
        if fullname in NAMES:
            installed = None if root in self._missing else self._installed(fullname, path)
            # All modules are packages, so that `from kserve.errors import Nothing` looks for a module here before it fails.
            spec = ModuleSpec(fullname, _Lender(installed), is_package=True)
            if installed is not None:  # where the modules of the SDK are found that mpserve does not lend
                spec.submodule_search_locations = installed.submodule_search_locations or []
            return spec
        if root in self._missing or _is_unserved(fullname):
            raise ImportError(_refusal(fullname))  # not ModuleNotFoundError, which `from … import` may drop
        return None

    def _installed(self, fullname: str, path: Sequence[str] | None) -> ModuleSpec | None:
        others = (finder for finder in sys.meta_path if finder is not self)
        return next(filter(None, (finder.find_spec(fullname, path, None) for finder in others)), None)


class _Lender(Loader):
    """Loads a module that is lent. ``installed``: the SDK's module of this name."""

    def __init__(self, installed: ModuleSpec | None) -> None:
        self._installed = installed
        self._original: ModuleType | None = None

    def exec_module(self, module: ModuleType) -> None:
        names = NAMES[module.__name__]

        def get(name: str) -> Any:
            if name in names:
                value = _imported(names[name])
                setattr(module, name, value)
                return value
            full = f"{module.__name__}.{name}"
            if full in NAMES:
                return import_module(full)
            if self._installed is None or name.startswith("__") or _is_unserved(full):
                raise AttributeError(_refusal(full))
            return self._of_the_sdk(self._installed, name, module)

        vars(module).update(__getattr__=get, __dir__=lambda: list(names), __all__=list(names))

    def _of_the_sdk(self, installed: ModuleSpec, name: str, lent: ModuleType) -> Any:
        """A name of the SDK's own module. Its code runs beside the lent module, whose names it gets by its imports."""
        # The SDK lets kserve.constants stand for its module kserve.constants.constants, and so with kserve.utils.
        same = f"{lent.__name__}.{lent.__name__.rpartition('.')[2]}"
        if same in NAMES:
            return getattr(import_module(same), name)
        full = f"{lent.__name__}.{name}"
        if find_spec(full) is not None:
            return import_module(full)
        if self._original is None:
            self._original = module_from_spec(installed)
            assert installed.loader is not None
            try:
                installed.loader.exec_module(self._original)
            except BaseException:
                self._original = None
                raise
        return getattr(self._original, name)


def _is_unserved(name: str) -> bool:
    return name.startswith(tuple(UNSERVED))


def _imported(home: str) -> Any:
    module, _, name = home.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.partition(".")[0] != "google":
            raise
        raise ModuleNotFoundError(
            f"{name} needs protobuf, which is not installed: pip install 'mpserve[grpc]'", name=missing.name
        ) from None


def _refusal(name: str) -> str:
    for start, reason in REFUSED.items():
        if name.startswith(start):
            return f"{name} is not lent: {reason}. See {_GUIDE}"
    module = name.rpartition(".")[0]
    lent = ", ".join([*NAMES.get(module, ()), *(other for other in NAMES if other.rpartition(".")[0] == module)])
    return f"{name} is not among the names that mpserve lends; of {module} these are: {lent or 'none'}. See {_GUIDE}"
