"""gunicorn settings for a user's configuration: ``from mpserve.gunicorn_config import *``, then override any of them.

``gunicorn -c python:mpserve.gunicorn_config mymodule:app`` uses them unchanged. The values come from ``MPSERVE_…`` variables, and
no setting is a hook, so a user's hooks override nothing.
"""

import sys
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter.application import gunicorn_options

try:
    _options = gunicorn_options(Settings.from_environment())
except ConfigurationError as error:
    sys.exit(f"mpserve: {error}")  # gunicorn would print another exception with a traceback
globals().update(_options)
__all__ = list(_options)


def app() -> Any:
    """The application of ``MPSERVE_TARGET`` or ``MPSERVE_MODEL_DIR``, if gunicorn has no other application."""
    from mpserve.server import app_from_settings

    return app_from_settings(Settings.from_environment())
