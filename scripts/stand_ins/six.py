"""Stands in for six, as it is on Python 3."""

from collections.abc import Iterator
from typing import Any

PY3 = True


def iteritems(mapping: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    return iter(mapping.items())
