"""What a gunicorn configuration imports: ``from mpserve.gunicorn_config import *``, then override what you like.

Also read as it stands by ``gunicorn -c python:mpserve.gunicorn_config mymodule:app``. The values come from the same
options as everywhere (``MPSERVE_…`` variables), and none of them is a hook, so that defining your own loses nothing.
"""

import sys
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.prefork.arbiter.application import gunicorn_options

try:
    _options = gunicorn_options(Settings.from_environment())
except ConfigurationError as error:
    sys.exit(f"mpserve: {error}")  # any other exception gunicorn would print with a traceback
globals().update(_options)
__all__ = list(_options)


def app() -> Any:
    """The application when gunicorn is given none: what ``MPSERVE_TARGET`` or ``MPSERVE_MODEL_DIR`` names."""
    from mpserve.server import app_from_settings

    return app_from_settings(Settings.from_environment())
