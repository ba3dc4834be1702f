"""Marks the e2e tests by their folders, and says how many examples hypothesis tries in the unit tests."""

from pathlib import Path

import hypothesis
import pytest

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
