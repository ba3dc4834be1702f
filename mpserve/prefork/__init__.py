"""gunicorn reads ``WEB_CONCURRENCY`` as soon as it is imported, and ends with a traceback if that is no number.

So it is imported without it, here, before any module of this package. Our settings read the variable, and refuse it in words.
"""

from mpserve.config.settings import without_worker_variable

with without_worker_variable():
    import gunicorn.config as _config  # noqa: F401
