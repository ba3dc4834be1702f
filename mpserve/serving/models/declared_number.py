"""A number that a model may declare, and that an option sets for all models that do not."""

import math
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.model import Model


def declared_number(model: Model, settings: Settings, name: str, expected: str, is_whole: bool = False) -> Any:
    """The attribute of the model, or else the option of that name. Raises ConfigurationError unless it is finite, and 0 or more.
    ``expected``: what it should be, in words.
    """
    declared = getattr(model, name)
    number = getattr(settings, name) if declared is None else declared
    if type(number) not in ((int,) if is_whole else (int, float)) or not 0 <= number < math.inf:
        raise ConfigurationError(f"model {model.name}: {name} is {number!r}, expected {expected}")
    return number


def declared_count(model: Model, settings: Settings, name: str) -> int:
    """As ``declared_number``, for a whole number."""
    count: int = declared_number(model, settings, name, "a number of 0 or more", is_whole=True)
    return count
