"""Starlette routes for model names with a slash, V1's verbs, and paths with a slash at the end. Knows no route and no model."""

from urllib.parse import quote, unquote

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from mpserve.http.responses import json_answer
from mpserve.http.server.interface import ADMIN

SLASH = "\udc2f"
"""Replaces an encoded slash while a path is matched. No decoded path contains this half of a surrogate pair."""


URL = "/?%:@!$&'()*+,;=-._~[]"
"""Characters of a path and a query that stand for themselves."""


class SegmentRoute(Route):
    """A route whose parameters may contain a slash, which the client encodes: ``/v2/models/meta%2Fllama/infer``.

    The ASGI server decodes the path, so only the raw path shows which slashes were encoded.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path") or b""
        if b"%2F" not in raw and b"%2f" not in raw:
            return super().matches(scope)
        path = unquote(raw.decode("latin-1").replace("%2F", SLASH).replace("%2f", SLASH))
        match, child = super().matches({**scope, "path": path})
        parameters = {name: value.replace(SLASH, "/") for name, value in child.get("path_params", {}).items()}
        return match, {**child, "path_params": parameters}


class AdminRoute(SegmentRoute):
    """A route that is there only for clients that have connected to ``--admin_bind``."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if ADMIN in scope else (Match.NONE, {})


class ModelName(StringConvertor):
    """A V1 model name without a verb, so that ``GET /v1/models/m:predict`` is answered with 405."""

    regex = r"(?:(?!:(?:predict|explain)$)[^/])+"


register_url_convertor("v1name", ModelName())


def redirect_slashes(router: Router) -> None:
    """Let the router redirect a path that is known with, or without, a slash at its end, to a path without a host.

    Starlette repeats the client's ``Host``, so that a cache may send other clients to a host of the client's choice.
    """
    router.redirect_slashes = False
    not_found = router.default

    async def default(scope: Scope, receive: Receive, send: Send) -> None:
        location = _location(router, scope) if scope["type"] == "http" else None
        if location is None:
            await not_found(scope, receive, send)
        else:
            # A client that does not follow, as curl without -L, shows the body.
            await json_answer({"error": f"the path is {location}"}, 307, [(b"location", location.encode())])(
                scope, receive, send
            )

    router.default = default


def _location(router: Router, scope: Scope) -> str | None:
    path: str = scope["path"]
    raw = (scope.get("raw_path") or quote(path).encode()).decode("latin-1")
    path, raw = (text.rstrip("/") if path.endswith("/") else f"{text}/" for text in (path, raw))
    other = {**scope, "path": path, "raw_path": raw.encode("latin-1")}
    is_known = any(route.matches(other)[0] is not Match.NONE for route in router.routes)
    if not path or raw.startswith("//") or not is_known:  # a browser takes `//name/` for a host
        return None
    query = scope["query_string"].decode("latin-1")
    return quote(f"{raw}?{query}" if query else raw, safe=URL)
