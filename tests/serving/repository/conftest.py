import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.imports import forget


@pytest.fixture(autouse=True)
def forgets_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a test imports from its folder is not found by the next test that has a file of that name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget(tmp_path)
