"""The message for a client that asks for a path without a route: it names the most similar routes, and the models."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from starlette.routing import BaseRoute, Route

from mpserve.errors import shown, there_are

NEAREST = 4  # routes in a message
FLAGS = {"docs": "enable_docs_url", "status": "enable_status_page"}
"""Pages without a route unless an option turns them on -> the option."""

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


class _Candidate(NamedTuple):
    """A route that may be meant: the words of its path, and the request line that a client would send."""

    words: frozenset[str]
    request: str


def no_route(method: str, path: str, routes: Iterable[BaseRoute], models: Sequence[str]) -> str:
    """The message for a path without a route."""
    said = f"there is no {shown(method)} {shown(path)}"
    if flag := FLAGS.get(path.strip("/")):
        return f"{said}; --{flag} turns it on"
    return f"{said}; the nearest are {nearest(path, routes, models)} GET /openapi.json lists all routes."


def nearest(path: str, routes: Iterable[BaseRoute], models: Sequence[str], method: str | None = None) -> str:
    """The routes that share most words with a path, for the model that the path names. All models follow if it names none.

    Args:
        path: the path of the request.
        routes: those of the application. Of routes that share as many words, the first are taken.
        models: the names of all models.
        method: only routes that take this method.
    """
    name = next((model for model in models if model in path), models[0] if len(models) == 1 else "{model}")
    words = frozenset(_words(shown(path)))
    candidates = [_candidate(route, name) for route in routes if isinstance(route, Route) and _takes(route, method)]
    ranked = sorted(candidates, key=lambda candidate: -len(words & candidate.words))
    near = [candidate.request for candidate in ranked[:NEAREST]]
    which = f" {there_are(models)}" if any("{model}" in request for request in near) else ""
    return f"{', '.join(near)}.{which}"


def _takes(route: Route, method: str | None) -> bool:
    return method is None or method in (route.methods or ())


def _candidate(route: Route, model: str) -> _Candidate:
    path = _PARAMETER.sub(r"{\1}", route.path)
    method = "POST" if "POST" in (route.methods or ()) else "GET"
    words = frozenset(_words(re.sub(r"\{\w+\}", "", path)))
    return _Candidate(words, f"{method} {path.replace('{model}', shown(model))}")


def _words(path: str) -> list[str]:
    """The first four letters of each word: most typing errors come later in a word."""
    return [word[:4] for word in re.findall(r"[a-z0-9]+", path.lower())]
