"""The trace settings that clients read and change while the server runs (Triton, ``extension_trace.md``), for all workers.

The environment says what is traced at first (``mpserve/telemetry/tracing.py``). A change of a client is kept in a file that all
workers share, with a generation in shared memory, which each worker compares at each request. A worker traces each n-th of its
own requests, and counts the traces that are left in the file. Knows no front end.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from mpserve.errors import InvalidInput, NotSupported
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.serving.repository.core import ServerCore
from mpserve.state import rundir
from mpserve.telemetry import tracing

if TYPE_CHECKING:
    from mpserve.telemetry.tracer import Tracer

SETTINGS: Mapping[str, list[str]] = {
    "trace_file": [""],
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["triton"],
}
"""Triton's settings and defaults, each as a list of words."""

LEAST = {"trace_rate": 1, "trace_count": -1}  # -1: any number of traces
LEVELS = ("OFF", "TIMESTAMPS")
CHANGEABLE = ("trace_level", *LEAST)
FILE = "traces.json"
ALL_MODELS = ""

Words = dict[str, list[str]]


class TraceSettings:
    """The trace settings of one server."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def told(self, model: str = ALL_MODELS) -> Words:
        """The settings of a model, or those of all models without settings of their own."""
        tracer = tracing.tracer()
        told = {**SETTINGS}
        if tracer is not None:
            told |= _by_environment(tracer.ratio)
            changed = _read(self.core)
            for name in dict.fromkeys((ALL_MODELS, model)):
                told |= changed.get(name, {})
        return told

    async def change(self, changes: Mapping[str, Any], model: str = ALL_MODELS) -> None:
        """Change these settings in every worker; None or an empty list returns a setting to that of all models, or its default.
        Raises InvalidInput if a setting is unknown, or its value is invalid; NotSupported if a setting cannot be changed.
        """
        told = self.told(model)
        checked = {name: _checked(name, value, told) for name, value in changes.items()}
        if checked and tracing.tracer() is not None:
            await self.core.offload(self._write, checked, model)

    def _write(self, changes: dict[str, list[str]], model: str) -> None:
        assert self.core.plane is not None
        directory = self.core.plane.directory
        with rundir.locked(directory):
            settings = _read(self.core)
            own = {name: words for name, words in {**settings.get(model, {}), **changes}.items() if words}
            rundir.replace(directory / FILE, orjson.dumps({**settings, model: own}))
            self.core.board.traces += 1


class TraceSampler:
    """Chooses the requests that are traced by the newest settings, for one worker."""

    def __init__(self, core: ServerCore, tracer: "Tracer") -> None:
        self._core = core
        self._tracer = tracer
        self._of_models: dict[str, ByClients] = {}
        self._of_others: ByClients | None = None  # None: as the environment says
        self.follow()

    def follow(self) -> None:
        """Follow the changes of clients."""
        changed = {name: words for name, words in _read(self._core).items() if words}
        default = _by_environment(self._tracer.ratio) | changed.get(ALL_MODELS, {})
        self._of_models = {
            name: ByClients(self._core, name if "trace_count" in words else ALL_MODELS, default | words)
            for name, words in changed.items()
        }
        self._of_others = self._of_models.pop(ALL_MODELS, None)

    def pause(self) -> float:
        """How many requests are not traced before ``samples`` is asked again."""
        return 0 if self._of_models or self._of_others else self._tracer.pause()

    def samples(self, model: str) -> bool:
        """Whether to begin a trace with this request."""
        choice = self._of_models.get(model, self._of_others)
        if choice is None:
            return not self._of_models or self._tracer.pause() == 0
        return choice.samples()

    def follows(self, model: str, parent: Any) -> bool:
        """Whether a request in the trace of its client is sampled."""
        choice = self._of_models.get(model, self._of_others)
        return self._tracer.follows(parent) if choice is None else choice.follows(parent)


class ByClients:
    """Chooses as clients have said: each n-th request, and those whose client traces them. ``counted``: whose count is used."""

    def __init__(self, core: ServerCore, counted: str, words: Words) -> None:
        self._core = core
        self._counted = counted
        self._is_on = words["trace_level"] != ["OFF"]
        self._rate = int(words["trace_rate"][0])
        self._left = int(words["trace_count"][0])
        self._seen = 0

    def samples(self) -> bool:
        seen = self._seen
        self._seen = seen + 1
        return self._is_on and not seen % self._rate and self._take()

    def follows(self, parent: Any) -> bool:
        return self._is_on and bool(parent.trace_flags.sampled) and self._take()

    def _take(self) -> bool:
        """Take one of the traces that are left for all workers. While they are counted, each trace writes the file."""
        if self._left <= 0:
            return self._left < 0
        assert self._core.plane is not None
        directory = self._core.plane.directory
        with rundir.locked(directory):
            settings = _read(self._core)
            self._left = int(settings.get(self._counted, {}).get("trace_count", ["-1"])[0])
            if self._left > 0:
                settings[self._counted]["trace_count"] = [str(self._left - 1)]
                rundir.replace(directory / FILE, orjson.dumps(settings))
        return self._left != 0


def _by_environment(ratio: float) -> Words:
    """The settings that say what the environment says, as nearly as they can."""
    rate = {"trace_rate": [str(round(1 / ratio))]} if ratio else {}
    return {**SETTINGS, "trace_level": ["TIMESTAMPS" if ratio else "OFF"], "trace_mode": ["opentelemetry"], **rate}


def _read(core: ServerCore) -> dict[str, Words]:
    """What clients have changed, by the name of the model."""
    if not core.board.traces or core.plane is None:
        return {}
    settings: dict[str, Words] = orjson.loads((core.plane.directory / FILE).read_bytes())
    return settings


def _checked(name: str, value: Any, told: Words) -> list[str]:
    """The words of a value; none if the setting is to return to its default."""
    if name not in SETTINGS:
        raise InvalidInput(f"unknown trace setting '{name[:MAX_SHOWN]}', expected one of {', '.join(SETTINGS)}")
    words = [] if value is None else [str(word) for word in value] if isinstance(value, list) else [str(value)]
    if words in ([], told[name]):
        return words if tracing.tracer() is not None and name in CHANGEABLE else []
    if tracing.tracer() is None:
        raise NotSupported(
            f"trace setting '{name}' cannot be set to {show(value)}: requests are not traced, since the server was started"
            " without mpserve[otel] or without OTEL_EXPORTER_OTLP_ENDPOINT"
        )
    if name == "trace_level":
        if words == ["TENSORS"] or "TENSORS" in words[1:]:
            raise NotSupported("trace setting 'trace_level' cannot be set to TENSORS: no tensors are traced")
        if len(words) != 1 or words[0] not in LEVELS:
            raise InvalidInput(f"trace setting 'trace_level' is {show(value)}, expected {' or '.join(LEVELS)}")
    elif name in LEAST:
        if len(words) != 1 or not re.fullmatch("-?[0-9]{1,18}", words[0]) or int(words[0]) < LEAST[name]:
            raise InvalidInput(f"trace setting '{name}' is {show(value)}, expected a number of {LEAST[name]} or more")
    else:
        raise NotSupported(
            f"trace setting '{name}' cannot be set to {show(value)}: the OTEL_ variables of the server decide"
        )
    return words
