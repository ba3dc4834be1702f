"""Marks the tests of the folders that start servers, and knows how much hypothesis tries in the unit tests."""

from pathlib import Path

import hypothesis
import pytest

STARTS_SERVERS = {"e2e", "clients", "conformance"}

hypothesis.settings.register_profile("unit", max_examples=10, deadline=None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] in STARTS_SERVERS:
            item.add_marker("e2e")
