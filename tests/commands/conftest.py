"""Commands run in the tests' process and configure its logging."""

import logging
from collections.abc import Iterator

import pytest

from mpserve.config.settings import Settings
from mpserve.telemetry.logging import dict_config


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), *map(logging.getLogger, dict_config(Settings())["loggers"])]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate
