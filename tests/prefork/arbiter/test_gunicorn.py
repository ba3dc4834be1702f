"""A gunicorn whose arbiter is another inside is refused in words; the installed one is as it was read."""

import pytest
from gunicorn.arbiter import Arbiter

from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter import gunicorn as gunicorn_arbiter


def test_the_installed_release_is_as_it_was_read() -> None:
    gunicorn_arbiter.check()


@pytest.mark.parametrize(("name", "changed", "told"), [
    ("WORKERS", [], r"\(WORKERS\)"),
    ("spawn_worker", lambda arbiter: arbiter.worker_class(arbiter.workers), r"\(spawn_worker: WORKERS\)"),
    ("manage_workers", None, "manage_workers: WORKERS, manage_workers: age, manage_workers: kill_worker, manage_workers: num"),
    ("reap_workers", lambda arbiter: arbiter.WORKERS.clear(), "reap_workers: APP_LOAD_ERROR"),
])  # fmt: skip
def test_another_one_is_refused_with_the_names(
    name: str, changed: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Arbiter, name, changed)
    with pytest.raises(ConfigurationError, match=f"{told}.*pip install 'gunicorn=="):
        gunicorn_arbiter.check()
