"""Finds out whether a model says itself that it is ready, or leaves that to the server.

The kserve SDK's models set ``self.ready = True`` when they can answer, most of them in ``load()``, some later in a thread of
their own. Most other models never name ``ready``. This module knows no worker and no request, and does not import the class
``Model``, which imports this module.
"""

import dis
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Protocol

MOMENTS = ("load", "start", "start_engine")  # the methods that bring a model up


class Readiness(Protocol):
    """The part of a model that this module looks at."""

    ready: bool


def forget(model: Readiness) -> None:
    """Forget a ``ready = False`` of the constructor or of an earlier load, just before ``load()``.
    A ``ready = True`` stays: a model that is reloaded in place goes on serving.
    """
    if not model.ready:
        vars(model).pop("ready", None)


def is_awaited(model: Readiness) -> bool:
    """Whether a model that has run its ``load()`` is not ready yet.
    The model has set ``ready = False``, or it has not set ``ready`` and a thread that ``load()`` has started will set it.
    """
    return not model.ready and ("ready" in vars(model) or sets_ready(type(model)))


def sets_ready(model_class: type) -> bool:
    """Whether a method that brings the model up sets ``ready``, or calls a method of the class that does."""
    found = list(MOMENTS)
    for name in found:
        for code in _code_of(model_class, name):
            if _makes_ready(code):
                return True
            found += [other for other in code.co_names if other not in found]
    return False


def _makes_ready(code: CodeType) -> bool:
    """Whether the code assigns ``ready`` anything but ``False``: a ``predict`` that clears it says nothing about the load."""
    steps = list(dis.get_instructions(code))
    return any(
        step.opname == "STORE_ATTR" and step.argval == "ready" and value.argval is not False
        for value, _, step in zip(steps, steps[1:], steps[2:], strict=False)
    )


def _code_of(model_class: type, name: str) -> Iterator[CodeType]:
    """The code of a method that the user wrote, and of its inner functions; of a parent class only after ``super()``."""
    for base in model_class.__mro__:
        found = vars(base).get(name)
        function = inspect.unwrap(found) if inspect.isfunction(found) else None
        if not inspect.isfunction(function) or function.__module__.partition(".")[0] == "mpserve":
            continue
        codes = list(_with_inner(function.__code__))
        yield from codes
        if not any("super" in code.co_names for code in codes):
            return


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
