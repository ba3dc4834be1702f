"""Marks the e2e tests by their folders, and says how many examples hypothesis tries in the unit tests."""

import inspect
from pathlib import Path

import hypothesis
import pytest

from tests.cases import call

SLOW = {"e2e", "clients", "conformance", "runtimes"}
"""Folders whose tests start servers, or import a framework, which takes seconds."""
CHAOS = "chaos"
"""The folder whose tests take minutes, and its marker."""

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
hypothesis.settings.register_profile("unit", max_examples=10)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker("e2e")
        if item.path.relative_to(Path(__file__).parent).parts[0] == CHAOS:
            item.add_marker(CHAOS)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the e2e tests, their folders are not even imported. The chaos suite runs only if -m or the path names it."""
    expression = config.option.markexpr
    left_out = (SLOW if "not e2e" in expression else set()) | (set() if CHAOS in expression else {CHAOS})
    return True if collection_path.name in left_out and collection_path.parent == Path(__file__).parent else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs the tests that are coroutines."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    call(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return True
