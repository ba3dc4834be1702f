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
    """One sentence for a client, and the way out."""
    said = f"there is no {shown(method)} {shown(path)}"
    if flag := FLAGS.get(path.strip("/")):
        return f"{said}; --{flag} turns it on"
    name = next((model for model in models if model in path), models[0] if len(models) == 1 else "{model}")
    near = _nearest(frozenset(_words(shown(path))), routes, name)
    which = f" {there_are(models)}" if name == "{model}" and any(name in request for request in near) else ""
    return f"{said}; the nearest are {', '.join(near)}.{which} GET /openapi.json lists all routes"


def _nearest(words: frozenset[str], routes: Iterable[BaseRoute], model: str) -> list[str]:
    """The routes that share most words with a path, of like ones the first."""
    ways = [_way(route, model) for route in routes if isinstance(route, Route)]
    ranked = sorted(ways, key=lambda way: -len(words & way.words))
    return [way.request for way in ranked[:NEAREST]]


def _way(route: Route, model: str) -> _Way:
    path = _PARAMETER.sub(r"{\1}", route.path)
    method = "POST" if "POST" in (route.methods or ()) else "GET"
    words = frozenset(_words(re.sub(r"\{\w+\}", "", path)))
    return _Way(words, f"{method} {path.replace('{model}', shown(model))}")


def _words(path: str) -> list[str]:
    """The beginnings of the words: what is mistyped mostly begins right."""
    return [word[:4] for word in re.findall(r"[a-z0-9]+", path.lower())]
