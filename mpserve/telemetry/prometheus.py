"""The names of prometheus_client that are not public, all in this module, and a check that they mean what they meant.

Read in prometheus_client 0.26.0: metrics.py (``Histogram._metric_init``, ``Histogram.observe``) and values.py. It knows no
metric of ours.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from prometheus_client import Histogram, values

from mpserve.errors import ConfigurationError

READ = "0.26.0"


def name_files_after(identity: Callable[[], str]) -> None:
    """Keep every metric that is created from now on in files, which are named after ``identity()``.

    prometheus_client chooses its class of values when it is first imported, which may have happened already.
    """
    values.ValueClass = values.MultiProcessValue(identity)


def bounds(histogram: Histogram) -> list[float]:
    """The upper bounds of the buckets, in their order; the last is infinity."""
    found: list[float] = histogram._upper_bounds
    return found


def add(histogram: Histogram, counts: Mapping[int, int], seconds: float) -> None:
    """Count so many observations in the buckets of these positions, whose sum is ``seconds``."""
    for position, count in counts.items():
        histogram._buckets[position].inc(count)
    if seconds:
        histogram._sum.inc(seconds)


@cache
def check() -> None:
    """Try these names on a histogram that nobody sees.

    Raises:
        ConfigurationError: this release of prometheus_client is another inside.
    """
    try:
        as_before = _is_as_read()
    except Exception:
        as_before = False
    if not as_before:
        raise ConfigurationError(
            f"prometheus-client {version('prometheus-client')} is installed. Inside it differs from {READ}, by which mpserve"
            f" counts: pip install 'prometheus-client=={READ}'"
        )


def _is_as_read() -> bool:
    in_memory = type("InMemory", (values.MutexValue,), {})  # so that the check leaves no file
    chosen, values.ValueClass = values.ValueClass, in_memory
    try:
        observed, added = (Histogram("checked", "Checked.", buckets=(1, 2), registry=None) for _ in range(2))
    finally:
        values.ValueClass = chosen
    observed.observe(1.5)
    observed.observe(8)
    add(added, {1: 1, 2: 1}, 9.5)
    return (
        bounds(added) == [1, 2, float("inf")]
        and isinstance(added._sum, in_memory)
        and ("checked_sum", {}, 9.5) in _told(added)
        and _told(observed) == _told(added)
    )


def _told(histogram: Histogram) -> list[Any]:
    """The samples, without the moment of creation."""
    samples = [sample for family in histogram.collect() for sample in family.samples]
    return [(sample.name, sample.labels, sample.value) for sample in samples if not sample.name.endswith("_created")]
