"""mpserve's gunicorn settings, for `gunicorn -c gunicorn.conf.py`; what is assigned or defined below the import wins."""

from mpserve.gunicorn_config import *  # noqa: F403
