"""Warnings about a file that is read many times: each is logged once in a process."""

import logging

_logged: set[str] = set()


def warn_once(logger: logging.Logger, text: str, *values: object) -> None:
    """Log a warning, unless this process has logged the same one."""
    line = text % values
    if line not in _logged:
        _logged.add(line)
        logger.warning("%s", line)
