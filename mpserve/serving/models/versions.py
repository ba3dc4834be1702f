"""The rules of versions: how a version follows a model's name, which version is newer, and that no two are equal.

A version is a text, as Triton and MLServer have it: "3", "v2", "2024-11-23".
"""

import re
from collections.abc import Iterable

from mpserve.errors import ConfigurationError
from mpserve.serving.models.model import Model

SEPARATOR = "@"


def split(title: str) -> tuple[str, str]:
    """``NAME`` or ``NAME@VERSION`` as (name, version); the version is empty if the title has none.
    Raises ConfigurationError if a part is missing, or there is a part too many.
    """
    name, separator, version = title.partition(SEPARATOR)
    if not name or bool(separator) != bool(version) or SEPARATOR in version:
        raise ConfigurationError(f"{title!r} names no model: expected NAME or NAME{SEPARATOR}VERSION")
    return name, version


def age(version: str) -> tuple[list[str | int], str]:
    """The sort key of versions, oldest first: texts in which numbers are compared as numbers.
    So 10 comes after 9, v1.10 after v1.9, and a number before a word. The text decides between 01 and 1.
    """
    parts = re.split(r"([0-9]+)", version)  # text, number, text … so that like is compared with like
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], version


def refuse_twins(models: Iterable[Model | type[Model]]) -> None:
    """Refuse models that requests could not tell apart.
    Raises ConfigurationError if two models have the same name and version, or a version is no text.
    """
    seen: set[tuple[str, str]] = set()
    for model in models:
        if not isinstance(model.version, str) or not model.version:
            raise ConfigurationError(f"model {model.name}: version is {model.version!r}, expected a text such as '2'")
        if (model.name, model.version) in seen:
            raise ConfigurationError(
                f"two models are named {model.name!r} and have version {model.version!r}; give each its own name or version"
            )
        seen.add((model.name, model.version))
