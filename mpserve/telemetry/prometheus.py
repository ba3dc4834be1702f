"""All private names of prometheus_client that mpserve uses, and a check that they still work. Knows no metric of ours.

Read in prometheus_client 0.26.0: metrics.py (``Histogram._metric_init``, ``Histogram.observe``) and values.py.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from prometheus_client import Histogram, values

from mpserve.errors import ConfigurationError

TESTED = "0.26.0"


def name_files_after(identity: Callable[[], str]) -> None:
    """Keep every metric that is created after this call in files, which are named after ``identity()``."""
    values.ValueClass = values.MultiProcessValue(identity)


def bounds(histogram: Histogram) -> list[float]:
    """The upper bounds of the buckets, in order. The last bound is infinity."""
    upper_bounds: list[float] = histogram._upper_bounds
    return upper_bounds


def add(histogram: Histogram, counts: Mapping[int, int], seconds: float) -> None:
    """Add observations. ``counts``: their number by the position of the bucket. ``seconds``: their sum."""
    for position, count in counts.items():
        histogram._buckets[position].inc(count)
    if seconds:
        histogram._sum.inc(seconds)


@cache
def check() -> None:
    """Try these names on a histogram outside the registry. Raises ConfigurationError if they do not work."""
    try:
        works = _works()
    except Exception:
        works = False
    if not works:
        raise ConfigurationError(
            f"prometheus-client {version('prometheus-client')} is installed. Inside it differs from {TESTED}, by which mpserve"
            f" counts: pip install 'prometheus-client=={TESTED}'"
        )


def _works() -> bool:
    in_memory = type("InMemory", (values.MutexValue,), {})  # so that the check leaves no file
    original, values.ValueClass = values.ValueClass, in_memory
    try:
        observed, added = (Histogram("checked", "Checked.", buckets=(1, 2), registry=None) for _ in range(2))
    finally:
        values.ValueClass = original
    observed.observe(1.5)
    observed.observe(8)
    add(added, {1: 1, 2: 1}, 9.5)
    return (
        bounds(added) == [1, 2, float("inf")]
        and isinstance(added._sum, in_memory)
        and ("checked_sum", {}, 9.5) in _samples(added)
        and _samples(observed) == _samples(added)
    )


def _samples(histogram: Histogram) -> list[Any]:
    """The samples, without the time of creation."""
    samples = [sample for family in histogram.collect() for sample in family.samples]
    return [(sample.name, sample.labels, sample.value) for sample in samples if not sample.name.endswith("_created")]
