"""``kserve.logging``: loggers with the SDK's names, which log as the server does."""

import logging
import logging.config
import sys
from typing import Any

from mpserve.config.command_line import parse
from mpserve.telemetry.logging import configure

KSERVE_LOGGER_NAME = "kserve"
KSERVE_TRACE_LOGGER_NAME = "kserve.trace"

logger = logging.getLogger(KSERVE_LOGGER_NAME)
trace_logger = logging.getLogger(KSERVE_TRACE_LOGGER_NAME)


def configure_logging(log_config: dict[str, Any] | str | None = None) -> None:
    """Configure logging by a dict, or by a YAML or JSON file that overrides the server's options. None changes nothing.

    Raises ConfigurationError: the file is invalid.
    """
    if isinstance(log_config, dict):
        logging.config.dictConfig(log_config)
    elif log_config is not None:
        configure(parse(sys.argv[1:], log_config_file=log_config).settings)
