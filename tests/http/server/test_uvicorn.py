"""What uvicorn does for the HTTP server: the application, its lifespan, the headers of proxies and TLS."""

import ssl
from typing import Any

import pytest
from uvicorn.config import Config

from mpserve.errors import ConfigurationError
from mpserve.http.server.uvicorn import Application


class Lived:
    """An application that notes what happens. ``fails``: whether its startup does."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: list[Any] = []
        self.fails = fails

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            self.seen.append((scope["client"], scope["scheme"]))
            return
        for what in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{what}"
            self.seen.append(what)
            scope["state"]["at"] = what
            await send({"type": f"lifespan.{what}.{'failed' if self.fails else 'complete'}"})


def application(app: Any, **tls: Any) -> Application:
    made = Application(app, "10.0.0.1", tls, None)
    made.load()
    return made


async def test_the_lifespan_runs_and_its_state_is_that_of_the_requests() -> None:
    app = Lived()
    loaded = application(app)
    assert loaded.tls is None
    assert await loaded.startup()
    assert loaded.state == {"at": "startup"}
    await loaded.shutdown()
    assert app.seen == ["startup", "shutdown"]
    assert not await application(Lived(fails=True)).startup()


async def test_the_headers_of_a_proxy_are_believed_if_it_is_one_of_ours() -> None:
    app = Lived()
    loaded = application(app)
    headers = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-proto", b"https")]
    for client in ("10.0.0.1", "10.0.0.2"):
        scope = {"type": "http", "headers": headers, "client": (client, 1), "scheme": "http"}
        await loaded.app(scope, None, None)  # type: ignore[arg-type]
    assert app.seen == [(("1.1.1.1", 0), "https"), (("10.0.0.2", 1), "http")]


async def test_the_tls_context_is_made_by_whoever_is_asked_and_what_is_missing_is_an_error() -> None:
    context = ssl.create_default_context()
    made = Application(Lived(), "*", {}, lambda default: context)
    made.load()
    assert made.tls is context
    with pytest.raises(OSError, match="No such file"):
        application(Lived(), certfile="missing.pem")


@pytest.mark.parametrize(("owner", "name"), [("Config", "lifespan_class"), ("LifespanOn", "should_exit")])
async def test_another_uvicorn_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, owner: str, name: str) -> None:
    load = Config.load

    def load_otherwise(self: Config) -> None:
        load(self)
        if owner == "Config":
            del self.lifespan_class
        else:
            others = dict.fromkeys(("startup", "shutdown", "state"))
            self.lifespan_class = type("LifespanOn", (), {**others, "__init__": lambda self, config: None})

    monkeypatch.setattr(Config, "load", load_otherwise)
    with pytest.raises(ConfigurationError, match=rf"uvicorn \S+ has no {owner}.{name}: install uvicorn 0.54"):
        application(Lived())
