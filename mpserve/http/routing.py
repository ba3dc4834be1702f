"""Starlette routes for model names with a slash, and for V1's verbs. Knows no route and no model."""

from urllib.parse import unquote

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.routing import Match, Route
from starlette.types import Scope

SLASH = "\udc2f"
"""Replaces an encoded slash while a path is matched. No decoded path contains this half of a surrogate pair."""


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


class ModelName(StringConvertor):
    """A V1 model name without a verb, so that ``GET /v1/models/m:predict`` is answered with 405."""

    regex = r"(?:(?!:(?:predict|explain)$)[^/])+"


register_url_convertor("v1name", ModelName())
