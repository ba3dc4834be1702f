"""The log settings that clients read and change while the server runs (Triton, ``extension_logging.md``), for all workers.

A change is one number in shared memory, which each worker follows on its tick, and also a worker that is respawned later.
Python has one level where Triton has a switch for each severity: a switch turns on all higher severities. Knows no front end.
"""

import logging
from collections.abc import Mapping
from typing import Any

from mpserve.errors import InvalidInput, NotSupported
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.serving.repository.core import ServerCore
from mpserve.state import rundir
from mpserve.telemetry.logging import set_level

logger = logging.getLogger(__name__)

DEFAULTS: Mapping[str, Any] = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
"""Triton's settings and defaults. A setting that is sent without a value returns to its default."""

FIXED = {
    "log_file": "lines go to stderr; use --log_config_file for another place",
    "log_format": "use --log_format or --log_config_file",
}
"""The settings that cannot be changed, and the way to get the same effect."""

SEVERITIES = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
STEP = logging.ERROR - logging.WARNING


class LogSettings:
    """The log settings of one server."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def told(self) -> dict[str, Any]:
        return _settings_at(self._level)

    async def change(self, changes: Mapping[str, Any]) -> None:
        """Change these settings in every worker; None returns a setting to its default.
        Raises InvalidInput if a setting is unknown, or its value is invalid, alone or together with another setting;
        NotSupported if a setting cannot be changed.
        """
        checked = {name: _checked(name, value) for name, value in changes.items()}
        if checked:
            await self.core.offload(self._write, checked)
            self.follow()

    def follow(self) -> None:
        """Log in this process at the level that clients have set, if any. To be called often; costs little."""
        level = self.core.board.log_level
        if level and level != logging.getLogger().level:
            set_level(level)

    @property
    def _level(self) -> int:
        return self.core.board.log_level or logging.getLogger().level

    def _write(self, changes: Mapping[str, Any]) -> None:
        assert self.core.plane is not None
        with rundir.locked(self.core.plane.directory):
            level = _changed(self._level, changes)
            self.core.board.log_level = level
        logger.warning("a client has set the log level to %s", logging.getLevelName(level))


def _settings_at(level: int) -> dict[str, Any]:
    switches = {name: level <= severity for name, severity in SEVERITIES.items()}
    return {**DEFAULTS, **switches, "log_verbose_level": int(level <= logging.DEBUG)}


def _checked(name: str, value: Any) -> Any:
    if name not in DEFAULTS:
        raise InvalidInput(f"unknown log setting '{name[:MAX_SHOWN]}', expected one of {', '.join(DEFAULTS)}")
    default = DEFAULTS[name]
    if value is None:
        return default
    if type(value) is not type(default) or (type(value) is int and value < 0):
        expected = {bool: "true or false", int: "a number of 0 or more", str: "a string"}[type(default)]
        raise InvalidInput(f"log setting '{name}' is {show(value)}, expected {expected}")
    if name in FIXED and value != default:
        raise NotSupported(f"log setting '{name}' cannot be set to {show(value)}: {FIXED[name]}")
    return value


def _changed(level: int, changes: Mapping[str, Any]) -> int:
    """The level after these changes."""
    before = level
    if "log_verbose_level" in changes:
        level = logging.DEBUG if changes["log_verbose_level"] else max(level, logging.INFO)
    for name, severity in SEVERITIES.items():
        if name in changes:
            level = min(level, severity) if changes[name] else max(level, severity + STEP)
    settings = _settings_at(level)
    if level > max(before, logging.ERROR):
        raise NotSupported(
            "log setting 'log_error' cannot be set to false: clients cannot turn errors off; use --log_level critical"
        )
    for name, value in changes.items():
        if bool(settings[name]) != bool(value):
            raise InvalidInput(
                f"log setting '{name}' cannot be {show(value)} together with the others: a severity is logged only along with"
                " all higher severities"
            )
    return level
