"""The log settings of Triton's clients, and the one level that they are here."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mpserve.errors import InvalidInput, MPServeError, NotSupported
from mpserve.serving.extensions.log_settings import DEFAULTS, LogSettings
from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.cases import each


@pytest.fixture(autouse=True)
def level_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("", "httpx2", "uvicorn.error")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


async def changed(start: int, changes: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The level of this process and the settings, after these changes to a server that began at this level."""
    logging.getLogger().setLevel(start)
    async with loaded(Model("m")) as core:
        settings = LogSettings(core)
        await settings.change(changes)
        return logging.getLogger().level, settings.told()


@each("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])
async def test_they_are_told_as_the_server_was_started(level: int) -> None:
    assert await changed(level, {}) == (
        level,
        {
            "log_file": "",
            "log_info": level <= logging.INFO,
            "log_warning": level <= logging.WARNING,
            "log_error": level <= logging.ERROR,
            "log_verbose_level": int(level == logging.DEBUG),
            "log_format": "default",
        },
    )


@each("start, changes, level", [
    (logging.INFO, {"log_verbose_level": 1}, logging.DEBUG), (logging.WARNING, {"log_verbose_level": 3}, logging.DEBUG),
    (logging.DEBUG, {"log_verbose_level": 0}, logging.INFO),
    (logging.WARNING, {"log_verbose_level": 0}, logging.WARNING), (logging.INFO, {"log_info": False}, logging.WARNING),
    (logging.DEBUG, {"log_info": False}, logging.WARNING), (logging.ERROR, {"log_info": True}, logging.INFO),
    (logging.DEBUG, {"log_info": True}, logging.DEBUG), (logging.INFO, {"log_warning": False}, logging.ERROR),
    (logging.CRITICAL, {"log_error": False}, logging.CRITICAL),
    (logging.CRITICAL, {"log_error": True}, logging.ERROR), (logging.ERROR, dict.fromkeys(DEFAULTS), logging.INFO),
    (logging.ERROR, dict(DEFAULTS), logging.INFO),
    (logging.WARNING, {"log_file": "", "log_format": "default"}, logging.WARNING),
])  # fmt: skip
async def test_a_change_is_a_level_and_loggers_that_repeat_us_stay_quieter(
    start: int, changes: dict[str, Any], level: int
) -> None:
    assert (await changed(start, changes))[0] == level
    if level != start:
        assert {logging.getLogger(name).level for name in ("httpx2", "uvicorn.error")} == {max(level, logging.WARNING)}


@each("changes, error, words", [
    ({"log_warnings": True}, InvalidInput, "unknown log setting 'log_warnings', expected one of log_file, log_info"),
    ({"log_info": 1}, InvalidInput, "log setting 'log_info' is 1, expected true or false"),
    ({"log_verbose_level": True}, InvalidInput, "is true, expected a number of 0 or more"),
    ({"log_verbose_level": -1}, InvalidInput, "is -1, expected a number of 0 or more"),
    ({"log_file": 3}, InvalidInput, "is 3, expected a string"),
    ({"log_info": True, "log_warning": False}, InvalidInput, "'log_info' cannot be true together with the others"),
    ({"log_verbose_level": 1, "log_warning": False}, InvalidInput, "'log_verbose_level' cannot be 1 together"),
    ({"log_error": False}, NotSupported, "'log_error' cannot be set to false: clients cannot turn errors off"),
    ({"log_info": False, "log_warning": False, "log_error": False}, NotSupported, "clients cannot turn errors off"),
    ({"log_file": "/tmp/x"}, NotSupported, 'cannot be set to "/tmp/x": lines go to stderr'),
    ({"log_format": "ISO8601"}, NotSupported, 'cannot be set to "ISO8601": use --log_format'),
])  # fmt: skip
async def test_what_cannot_be_is_refused_and_changes_nothing(
    changes: dict[str, Any], error: type[MPServeError], words: str
) -> None:
    with pytest.raises(error) as refused:
        await changed(logging.INFO, changes)
    assert words in str(refused.value)
    assert logging.getLogger().level == logging.INFO
