"""What a client reads that asks for a path without a route: the routes that are most like it, and the models."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starlette.routing import BaseRoute, Route

from mpserve.errors import shown, there_are

NEAREST = 4  # routes in a message
FLAGS = {"docs": "enable_docs_url", "status": "enable_status_page"}
"""Pages that an option turns on or off -> the option."""

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class _Way(NamedTuple):
    """A route: the words of its path, and the path with a method, as a client would ask."""

    words: frozenset[str]
    request: str


def there_is_no(method: str, path: str, routes: Iterable[BaseRoute], models: Sequence[str]) -> str:
    """What is said of a path without a route."""
    said = f"there is no {shown(method)} {shown(path)}"
    if flag := FLAGS.get(path.strip("/")):
        return f"{said}; --{flag} turns it on"
    return f"{said}; the nearest are {nearest(path, routes, models)} GET /openapi.json lists all routes."


def nearest(path: str, routes: Iterable[BaseRoute], models: Sequence[str], method: str | None = None) -> str:
    """The routes that share most words with a path, of like ones the first, with the name of the model that is meant; all
    models if that is not known. ``method``: only routes that take it.
    """
    name = next((model for model in models if model in path), models[0] if len(models) == 1 else "{model}")
    words = frozenset(_words(shown(path)))
    ways = [_way(route, name) for route in routes if isinstance(route, Route) and _takes(route, method)]
    near = [way.request for way in sorted(ways, key=lambda way: -len(words & way.words))[:NEAREST]]
    which = f" {there_are(models)}" if any("{model}" in request for request in near) else ""
    return f"{', '.join(near)}.{which}"


def _takes(route: Route, method: str | None) -> bool:
    return method is None or method in (route.methods or ())


def _way(route: Route, model: str) -> _Way:
    path = _PARAMETER.sub(r"{\1}", route.path)
    method = "POST" if "POST" in (route.methods or ()) else "GET"
    words = frozenset(_words(re.sub(r"\{\w+\}", "", path)))
    return _Way(words, f"{method} {path.replace('{model}', shown(model))}")


def _words(path: str) -> list[str]:
    """The beginnings of the words: what is mistyped mostly begins right."""
    return [word[:4] for word in re.findall(r"[a-z0-9]+", path.lower())]
