"""Commands run in the tests' process: they configure its logging, and import models from files of one name."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpserve.config.settings import Settings
from mpserve.telemetry import logging as telemetry
from mpserve.telemetry.logging import dict_config
from tests.imports import forget


@pytest.fixture(autouse=True)
def loggers_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    loggers = [logging.getLogger(), *map(logging.getLogger, dict_config(Settings())["loggers"])]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    for name in ("handlers", "level", "apart", "warned"):
        monkeypatch.setattr(telemetry._Operator, name, getattr(telemetry._Operator, name))
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture(autouse=True)
def forgets_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    forget(tmp_path)
