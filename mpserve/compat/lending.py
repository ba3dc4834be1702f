"""Lends the kserve SDK's module names to scripts that were written for it, so that they run unchanged.

``import kserve`` finds an empty module. When a script uses a name of it, the object in the table of names is imported. A
name that is not in the table raises an error with the reason.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from mpserve.compat.names import NAMES, REFUSED

_ROOTS = {module.partition(".")[0] for module in NAMES}
_GUIDE = "docs/migrating-from-kserve.md"


def lend(instead: bool = False) -> None:
    """Lend the names of packages that are not installed. With ``instead``, lend those of kserve even if it is installed."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    roots = {root for root in _ROOTS if (instead and root == "kserve") or find_spec(root) is None}
    sys.meta_path.insert(0, _Finder(roots))


def wrap(app: Any) -> Any:
    """Wrap the ASGI application in ``kserve.model_server.app``, if a script has imported that."""
    application = sys.modules.get("mpserve.compat.application")
    return app if application is None else application.wrap(app)


class _Finder(MetaPathFinder):
    def __init__(self, roots: set[str]) -> None:
        self._roots = roots

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname.partition(".")[0] not in self._roots:
            return None
        if fullname in NAMES:
            # All modules are packages, so that `from kserve.errors import Nothing` looks for a module here before it fails.
            return ModuleSpec(fullname, _Lender(), is_package=True)
        raise ImportError(_refusal(fullname))  # not ModuleNotFoundError, which `from … import` may drop


class _Lender(Loader):
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
            raise AttributeError(_refusal(full))

        vars(module).update(__getattr__=get, __dir__=lambda: list(names), __all__=list(names))


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
