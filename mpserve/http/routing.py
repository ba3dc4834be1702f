"""How an address is matched with a route where Starlette's own way does not do: model names with a slash, and V1's verbs.

It knows no route and no model.
"""

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Match, Route
from starlette.types import Scope

SLASH = "\udc2f"
"""Stands for an encoded slash while a path is matched. No decoded path holds this half of a surrogate pair."""


class SegmentRoute(Route):
    """A route whose parameters may hold a slash, which the client sends as ``%2F``: ``/v2/models/meta%2Fllama/infer``.

    An ASGI server decodes the path, so Starlette cannot tell an encoded slash from one that separates. The raw path can.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        raw = scope.get("raw_path") or b""
        if b"%2F" not in raw and b"%2f" not in raw:
            return super().matches(scope)
        path = unquote(raw.decode("latin-1").replace("%2F", SLASH).replace("%2f", SLASH))
        match, found = super().matches({**scope, "path": path})
        return match, _with_slashes(found)


def _with_slashes(found: Scope) -> MutableMapping[str, Any]:
    parameters = found.get("path_params", {})
    return {**found, "path_params": {name: value.replace(SLASH, "/") for name, value in parameters.items()}}


class ModelName(Convertor[str]):
    """A V1 model name. Without it ``GET /v1/models/m:predict`` would look up a model ``m:predict``, not answer 405."""

    regex = r"(?:(?!:(?:predict|explain)$)[^/])+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("v1name", ModelName())
