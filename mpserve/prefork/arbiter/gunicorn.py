"""All undocumented names of gunicorn's arbiter that mpserve uses, and a check that the arbiter still uses them.

Read in gunicorn 25.1 to 27.0.1, arbiter.py. pyproject.toml allows no newer major version, since the check cannot see that
``spawn_workers`` only adds pauses and that the statuses halt the server.
"""

import signal
from collections.abc import Callable, Iterable
from importlib.metadata import version
from types import CodeType
from typing import Any

from gunicorn.arbiter import Arbiter

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import systemd
from mpserve.state.scoreboard import State, shared

TESTED = "27.0.1"
BOOT_ERROR: int = Arbiter.WORKER_BOOT_ERROR  # the exit status of a server of which no worker became ready
APP_LOAD_ERROR: int = Arbiter.APP_LOAD_ERROR  # the exit status of a server that has no application of mpserve

USED = {
    "spawn_worker": {"worker_class", "WORKERS"},
    "spawn_workers": {"num_workers", "WORKERS", "spawn_worker"},
    "manage_workers": {"num_workers", "WORKERS", "spawn_workers", "age", "kill_worker"},
    "reap_workers": {"WORKERS", "WORKER_BOOT_ERROR", "APP_LOAD_ERROR"},
    "reload": {"worker_age", "spawn_worker", "manage_workers", "reap_workers"},
}
"""Methods of the arbiter -> the names that they must use, so that this module has an effect."""


def workers() -> Iterable[Any]:
    """The workers that are forked and not reaped yet, as objects of the worker class."""
    by_pid: dict[int, Any] = Arbiter.WORKERS
    return by_pid.values()


def spawn_without_pauses() -> None:
    """Let the arbiter fork its workers at once. gunicorn's ``spawn_workers`` sleeps up to a tenth of a second after each."""
    Arbiter.spawn_workers = _spawn_workers


def _spawn_workers(arbiter: Any) -> None:
    for _ in range(arbiter.num_workers - len(arbiter.WORKERS)):
        arbiter.spawn_worker()


class _Waits(Exception):
    """``reload`` has begun to wait for the old workers."""


class _Hup:
    before = 0  # the age of the youngest worker before the last HUP


OLDEST = 0
"""The age that a worker gets when it has asked for a successor. gunicorn retires the oldest worker when it has too many."""


def mind_workers() -> None:
    """Let the arbiter replace workers that die while the old workers of a HUP are still there, and workers that ask for it.

    gunicorn's ``reload`` waits up to ``graceful_timeout`` for them, and looks at no signal meanwhile. It wants to spare them a
    second SIGTERM, which does no harm to ours. Afterwards an old worker that only drains is not counted as a worker.

    A worker that asks (``Row.is_spent``) is not counted either, so the arbiter forks one more. gunicorn then has too many
    and sends SIGTERM to the oldest, which serves on until its successor is ready.
    """
    if Arbiter.reload is _reload:
        return
    _originals.update(reload=Arbiter.reload, manage_workers=Arbiter.manage_workers)
    Arbiter.reload, Arbiter.manage_workers = _reload, _manage_workers


_originals: dict[str, Callable[[Any], None]] = {}


def _reload(arbiter: Any) -> None:
    def end_the_wait() -> None:
        raise _Waits

    _Hup.before = arbiter.worker_age
    arbiter.reap_workers = end_the_wait  # of this method, only the wait calls it
    try:
        _originals["reload"](arbiter)
    except _Waits:
        pass
    finally:
        del arbiter.reap_workers


def _manage_workers(arbiter: Any) -> None:
    _originals["manage_workers"](arbiter)
    board = shared()
    if board.ever_ready:
        systemd.tell_ready()
    if board.stopping:
        return
    _let_one_go(arbiter)
    leaving = [w for w in workers() if w.age == OLDEST or _drains_after_hup(w)]
    for _ in range(arbiter.num_workers - (len(arbiter.WORKERS) - len(leaving))):
        arbiter.spawn_worker()


def _drains_after_hup(worker: Any) -> bool:
    return bool(worker.age <= _Hup.before and shared().row(worker.slot).state >= State.DRAINING)


def _let_one_go(arbiter: Any) -> None:
    """Begin to replace a worker that asks for it, if all workers serve and so no other one is being replaced."""
    rows = {worker: shared().row(worker.slot) for worker in workers()}
    if len(rows) != arbiter.num_workers or any(row.state != State.READY for row in rows.values()):
        return
    spent = [worker for worker, row in rows.items() if row.is_spent]
    if not spent:
        return
    worker = min(spent, key=lambda worker: worker.age)
    if worker.may_overlap:
        worker.age = OLDEST
    else:
        arbiter.kill_worker(worker.pid, signal.SIGTERM)


def halt_on_no_status() -> None:
    """Let no exit status of a worker halt the server.

    gunicorn halts on two statuses, which is right only before a worker has been ready; a native library may exit with the same
    statuses. gunicorn fails with a traceback if a second worker exits with such a status while it halts.
    """
    Arbiter.WORKER_BOOT_ERROR = Arbiter.APP_LOAD_ERROR = -1


def check() -> None:
    """Raise ConfigurationError if the arbiter does not use the names of this module."""
    missing = [f"{method}: {name}" for method, names in USED.items() for name in sorted(names - _names_in(method))]
    if missing or not isinstance(Arbiter.WORKERS, dict):
        raise ConfigurationError(
            f"gunicorn {version('gunicorn')} is installed. Its arbiter differs from that of {TESTED}, by which mpserve counts"
            f" and replaces workers ({', '.join(missing) or 'WORKERS'}): pip install 'gunicorn=={TESTED}'"
        )


def _names_in(method: str) -> set[str]:
    function: Callable[..., object] | None = _originals.get(method) or getattr(Arbiter, method, None)
    code = getattr(function, "__code__", None)
    return _names_of(code) if isinstance(code, CodeType) else set()


def _names_of(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names_of, inner))
