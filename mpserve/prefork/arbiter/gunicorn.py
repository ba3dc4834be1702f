"""The names of gunicorn's arbiter that are not documented, all in this module, and a check that they mean what they meant.

Read in gunicorn 27.0.1, arbiter.py. pyproject.toml lets no other major release in, since not all can be checked: that
``spawn_workers`` pauses and nothing else, and that the statuses halt the server.
"""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from types import CodeType
from typing import Any

from gunicorn.arbiter import Arbiter

from mpserve.errors import ConfigurationError

READ = "27.0.1"
BOOT_ERROR: int = Arbiter.WORKER_BOOT_ERROR
"""The exit status of a server none of whose workers could be made ready."""
APP_LOAD_ERROR: int = Arbiter.APP_LOAD_ERROR
"""The exit status of a server whose application is none."""

USED = {
    "spawn_worker": {"worker_class", "WORKERS"},
    "spawn_workers": {"num_workers", "WORKERS", "spawn_worker"},
    "manage_workers": {"num_workers", "WORKERS", "spawn_workers"},
    "reap_workers": {"WORKERS", "WORKER_BOOT_ERROR", "APP_LOAD_ERROR"},
}
"""Methods of the arbiter -> the names that they must use, or what this module changes has no effect."""


def workers() -> Iterable[Any]:
    """The workers that are forked and not reaped yet, as objects of the worker class."""
    found: dict[int, Any] = Arbiter.WORKERS
    return found.values()


def spawn_without_pauses() -> None:
    """Let the arbiter fork its workers at once.

    gunicorn's ``spawn_workers`` sleeps up to a tenth of a second after each. A crowd at the accept is the listeners' affair, and
    a worker that dies again and again is the back-off's.
    """
    Arbiter.spawn_workers = _spawn_workers


def _spawn_workers(arbiter: Any) -> None:
    for _ in range(arbiter.num_workers - len(arbiter.WORKERS)):
        arbiter.spawn_worker()


def halt_on_no_status() -> None:
    """Let no exit status of a worker halt the server.

    gunicorn halts on two of them at any time, which is right at the first start only, and a native library may well end its
    process with one. When a second worker ends like that while gunicorn halts, gunicorn fails with a traceback.
    """
    Arbiter.WORKER_BOOT_ERROR = Arbiter.APP_LOAD_ERROR = -1


def check() -> None:
    """Look whether the arbiter still uses the names of this module.

    Raises:
        ConfigurationError: it does not.
    """
    missing = [f"{method}: {name}" for method, names in USED.items() for name in sorted(names - _names_in(method))]
    if missing or not isinstance(Arbiter.WORKERS, dict):
        raise ConfigurationError(
            f"gunicorn {version('gunicorn')} is installed. Its arbiter differs from that of {READ}, by which mpserve counts"
            f" and replaces workers ({', '.join(missing) or 'WORKERS'}): pip install 'gunicorn=={READ}'"
        )


def _names_in(method: str) -> set[str]:
    function: Callable[..., object] | None = getattr(Arbiter, method, None)
    code = getattr(function, "__code__", None)
    return set(code.co_names) if isinstance(code, CodeType) else set()
