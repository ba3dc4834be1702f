"""An ASGI application, for `gunicorn application:app` or `uvicorn application:app`; and the same inside a middleware."""

from pid import Pid
from starlette.middleware.gzip import GZipMiddleware

from mpserve import asgi_app

app = asgi_app([Pid])
wrapped = GZipMiddleware(app)
