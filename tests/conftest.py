"""Marks the e2e tests by their folders, and says how many examples hypothesis tries in the unit tests."""

import inspect
from pathlib import Path

import hypothesis
import pytest

from tests.cases import call

SLOW = {"e2e", "clients", "conformance", "runtimes"}
"""Folders whose tests start servers, or import a framework, which takes seconds."""

hypothesis.settings.register_profile("unit", max_examples=10, deadline=None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in SLOW:
            item.add_marker("e2e")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without the e2e tests, their folders are not even imported."""
    left_out = "not e2e" in config.option.markexpr and collection_path.name in SLOW
    return True if left_out and collection_path.parent == Path(__file__).parent else None


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs the tests that are coroutines."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    call(pyfuncitem.obj, {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    return True
