"""All private names of prometheus_client that mpserve uses, and a check that they still work. Knows no metric of ours.

Read in prometheus_client 0.26.0: metrics.py (``Histogram._metric_init``, ``Histogram.observe``), values.py, mmap_dict.py and
registry.py.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram, Info, Summary, mmap_dict, values
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mpserve.errors import ConfigurationError

logger = logging.getLogger(__name__)

TESTED = "0.26.0"
IN_FILES = Counter, Gauge, Histogram, Summary
"""The kinds of collectors whose values are in files, so that every process can read them."""
MAPPED = "MmapedDict"
"""The name in ``prometheus_client.values`` of the class of its files."""
FIRST_SIZE = 4096
"""Bytes of a new file. A file that is full doubles. All its bytes are allocated, so it is small at first."""
AROUND_A_KEY = 32
"""Bytes that a value takes besides its key, at most: the length of the key, padding, the value and its time."""

_load: ContextVar[object | None] = ContextVar("load", default=None)
_made_in: dict[Collector, object | None] = {}  # by registered collector: the load that made it
_own: list[Collector] = []  # collectors of the default registry that are in no file
_failing: set[Collector] = set()  # those of them that have raised
_late: "set[ValueFile]" = set()  # files without room for some value


def keep_in_files(identity: Callable[[], str]) -> None:
    """Keep every metric that is created after this call in files, which are named after ``identity()``."""
    vars(values)[MAPPED] = ValueFile
    make = values.MultiProcessValue(identity)
    made: dict[object, Any] = {}
    making = threading.Lock()

    def value(*parameters: Any, multiprocess_mode: str = "", **others: Any) -> Any:
        _refuse_bucket(*parameters[1:5])  # here, since each value that is made appears in /metrics
        # Two objects for one value would overwrite each other's counts, if a model file that makes a metric is loaded anew.
        key = *parameters, multiprocess_mode
        with making:
            if key not in made:
                made[key] = make(*parameters, multiprocess_mode=multiprocess_mode, **others)
            return made[key]

    values.ValueClass = value
    registry = prometheus_client.REGISTRY
    register = registry.register
    registry.register = lambda collector: _register(register, collector)  # type: ignore[method-assign]


class ValueFile:
    """The values of one process in a file, instead of ``MmapedDict``, which kills the process if there is no room.

    A mapping of a file that is not allocated raises SIGBUS where it is written. Here the room is allocated first. A value for
    which there is no room is kept in memory, and written when there is room (``write_late``).
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: mmap_dict.MmapedDict | None = None
        self._kept: dict[str, tuple[float, float]] = {}
        self._growing = threading.Lock()
        self._failure: OSError | None = None

    def read_value(self, key: str) -> tuple[float, float]:
        """The value and its time. prometheus_client reads each value before it writes it."""
        with self._growing:
            file = self._with_room_for(key)
            if file is None:
                _late.add(self)
                return self._kept.setdefault(key, (0.0, 0.0))
        value: tuple[float, float] = file.read_value(key)
        return value

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        if self._kept:
            with self._growing:
                if key in self._kept:
                    self._kept[key] = value, timestamp
                    return
        assert self._file is not None
        self._file.write_value(key, value, timestamp)

    def write_late(self) -> OSError | None:
        """Try again to write what there was no room for. Returns the failure, if there is still none."""
        with self._growing:
            for key, kept in list(self._kept.items()):
                file = self._with_room_for(key)
                if file is None:
                    return self._failure
                file.read_value(key)
                file.write_value(key, *kept)
                del self._kept[key]
            _late.discard(self)
        return None

    def close(self) -> None:
        with self._growing:
            _late.discard(self)
            if self._file is not None:
                self._file.close()

    def _with_room_for(self, key: str) -> "mmap_dict.MmapedDict | None":
        """The file, with room for this key; None if there is no room."""
        try:
            if self._file is None:
                _create(Path(self._name))
                self._file = mmap_dict.MmapedDict(self._name)
            if key not in self._file._positions:
                _allocate(self._file, len(key.encode()) + AROUND_A_KEY)
        except OSError as error:
            self._failure = error
            return None
        return self._file


def _create(path: Path) -> None:
    """Make an empty file, unless it is there. It gets its name when it is whole, since others read it at any time."""
    if path.exists():
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, FIRST_SIZE)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _allocate(file: mmap_dict.MmapedDict, more: int) -> None:
    """Allocate the room that the file takes when it grows by so many bytes. Raises OSError if there is none."""
    capacity = file._capacity
    while file._used + more > capacity:
        capacity *= 2
    if capacity > file._capacity:
        os.posix_fallocate(file._f.fileno(), 0, capacity)


def write_late() -> OSError | None:
    """Write the values that had no room in their files. Returns a failure if some still have none. Call this often."""
    failures = [file.write_late() for file in list(_late)]
    return next((failure for failure in failures if failure is not None), None)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let the code of a load make metrics that an earlier load has made, each once. They go on with the same values."""
    token = _load.set(object())
    try:
        yield
    finally:
        _load.reset(token)


def _register(register: Callable[[Collector], None], collector: Collector) -> None:
    try:
        register(collector)
    except ValueError:  # for names that are registered already
        known = prometheus_client.REGISTRY._names_to_collectors
        twins = {known[name] for name in prometheus_client.REGISTRY._get_names(collector) if name in known}
        load = _load.get()
        if not twins or load is None or any(_made_in.get(twin) in (None, load) for twin in twins):
            raise
        for twin in twins:
            if type(twin).__qualname__ != type(collector).__qualname__:
                raise _other(twin, "kind of metric") from None
            if isinstance(collector, Histogram) and isinstance(twin, Histogram) and bounds(collector) != bounds(twin):
                raise _other_buckets(twin) from None
            prometheus_client.REGISTRY.unregister(twin)
            del _made_in[twin]
            if twin in _own:
                _own.remove(twin)
        register(collector)
    _made_in[collector] = _load.get()
    if not isinstance(collector, IN_FILES):
        _own.append(collector)


def _refuse_bucket(metric: str, name: str, labels: Sequence[str], values: Sequence[str]) -> None:
    """Raise ValueError for a bucket that an earlier histogram of this name does not have: their counts are one in the files."""
    twin = prometheus_client.REGISTRY._names_to_collectors.get(metric)
    if isinstance(twin, Histogram) and labels[-1:] == ("le",) and float(values[-1]) not in bounds(twin):
        raise _other_buckets(twin)


def _other_buckets(twin: Histogram) -> ValueError:
    return _other(twin, f"buckets, {', '.join(map(str, bounds(twin)))}")


def _other(twin: Collector, what: str) -> ValueError:
    return ValueError(
        f"a metric has the name of {twin}, which an earlier load has made: expected the same {what};"
        " restart the server to change that"
    )


class InProcess(Collector):
    """Collects the collectors of this process that are in no file: ``Info``, ``Enum``, and the user's own.

    Another worker may tell other values, so the samples get the label ``pid``, like those of a gauge. It is ``identity``. The
    samples of an ``Info`` do not get it.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def collect(self) -> Iterator[Metric]:
        for collector in list(_own):
            label = {} if isinstance(collector, Info) else {"pid": self._identity}
            try:
                yield from [_labelled(metric, label) for metric in collector.collect()]
            except Exception:
                if collector not in _failing:
                    _failing.add(collector)
                    logger.exception(
                        "%r failed. /metrics goes without it; only the first failure is logged.", collector
                    )


def _labelled(metric: Metric, label: Mapping[str, str]) -> Metric:
    labelled = Metric(metric.name, metric.documentation, metric.type, metric.unit)
    labelled.samples = [sample._replace(labels={**label, **sample.labels}) for sample in metric.samples]
    return labelled


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
        works = _works() and _files_work()
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


def _files_work() -> bool:
    descriptor = os.memfd_create("checked")  # so that the check leaves no file
    file = mmap_dict.MmapedDict(f"/proc/self/fd/{descriptor}")
    try:
        capacity, used = file._capacity, file._used
        file.write_value("key", 1.5, 0.0)
        return (
            capacity == os.fstat(file._f.fileno()).st_size
            and used < file._used <= used + len("key") + AROUND_A_KEY
            and set(file._positions) == {"key"}
            and file.read_value("key") == (1.5, 0.0)
            and vars(values)[MAPPED] in (mmap_dict.MmapedDict, ValueFile)
            and isinstance(prometheus_client.REGISTRY._names_to_collectors, dict)
            and callable(prometheus_client.REGISTRY._get_names)
        )
    finally:
        file.close()
        os.close(descriptor)
