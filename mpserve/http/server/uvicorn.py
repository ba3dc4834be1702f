"""Loads the application, its lifespan and the TLS context by uvicorn. Only this module knows uvicorn.

Undocumented names of uvicorn are checked when the application is loaded.
"""

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.config import Config

from mpserve.errors import ConfigurationError
from mpserve.http.server.interface import ASGIApp

TESTED = "0.54"  # the version of uvicorn that was read and tested

LOADED = ("loaded_app", "lifespan_class", "ssl")  # attributes of a loaded ``Config`` that uvicorn does not document
LIFESPAN = ("startup", "shutdown", "should_exit", "state")  # attributes of its lifespan that uvicorn does not document

MakeContext = Callable[[Callable[[], ssl.SSLContext]], ssl.SSLContext]
"""Makes the TLS context. Its argument makes the default context, from the files."""


class Application:
    """An ASGI application, wrapped in uvicorn's middleware for the headers of proxies.

    Args:
        app: the application.
        forwarded_allow_ips: the proxies whose ``X-Forwarded-*`` headers are trusted.
        tls: gunicorn's TLS options.
        make_context: makes the TLS context. None means no TLS.
    """

    def __init__(
        self, app: Any, forwarded_allow_ips: list[str] | str, tls: dict[str, Any], make_context: MakeContext | None
    ) -> None:
        self._make_config = partial(
            Config,
            http=asyncio.Protocol,  # not used: the protocol is ours
            ws="none",
            log_config=None,
            access_log=False,
            forwarded_allow_ips=forwarded_allow_ips,
            ssl_keyfile=tls.get("keyfile"),
            ssl_certfile=tls.get("certfile"),
            ssl_ca_certs=tls.get("ca_certs"),
            ssl_cert_reqs=tls.get("cert_reqs", ssl.CERT_NONE),
            ssl_ciphers=tls.get("ciphers"),
            ssl_context_factory=None if make_context is None else lambda _, default: make_context(default),
        )
        self._config = self._make_config(app)

    def load(self) -> None:
        """Load the application and the certificate.

        Raises:
            OSError: the certificate or the key cannot be read. An ``ssl.SSLError`` is one.
            ValueError: a TLS option is wrong.
            ConfigurationError: this version of uvicorn lacks a name that this module uses.
        """
        self._config.load()
        _require(self._config, LOADED)
        self._lifespan = self._config.lifespan_class(self._config)
        _require(self._lifespan, LIFESPAN)
        self.app: ASGIApp = self._config.loaded_app
        self.tls: ssl.SSLContext | None = self._config.ssl
        self.state: dict[str, Any] = self._lifespan.state

    def renew_tls(self) -> None:
        """Make the TLS context again, from the files as they are now. Raises as ``load``, and keeps the old context then."""
        config = self._make_config(self._config.app)
        config.load()
        self.tls = config.ssl

    async def startup(self) -> bool:
        """Run the startup of the application's lifespan. Return whether it succeeded."""
        await self._lifespan.startup()
        return not self._lifespan.should_exit

    async def shutdown(self) -> None:
        """Run the shutdown of the application's lifespan."""
        await self._lifespan.shutdown()


def _require(owner: object, names: tuple[str, ...]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ConfigurationError(
            f"uvicorn {uvicorn.__version__} has no {type(owner).__name__}.{missing[0]}: install uvicorn {TESTED}"
        )
