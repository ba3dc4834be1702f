"""Traces: whether this process makes any, and what the other modules ask of them. ``tracer.py`` alone knows OpenTelemetry.

The standard OTEL_ variables decide, and no option does: whoever runs a collector sets them for all programs of a machine or a
cluster at once, as the OpenTelemetry operator does. Without an endpoint or an exporter among them nothing is traced.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple

from mpserve.telemetry.otlp import Attributes

if TYPE_CHECKING:
    from mpserve.telemetry.tracer import Tracer

logger = logging.getLogger(__name__)

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
OURS = "http/protobuf"
SAMPLERS = ("always_on", "always_off", "traceidratio")
PARENT_BASED = "parentbased_"


class Sampling(NamedTuple):
    """Which requests are sampled. ``is_parent_based``: a request in a trace of its client is sampled if the client samples it."""

    is_parent_based: bool
    ratio: float


class _Process:
    tracer: "Tracer | None" = None


def exporters(environ: Mapping[str, str]) -> list[str]:
    """The exporters that the environment names; none: nothing is traced."""
    named = [name.strip().lower() for name in environ.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in named:
        return []
    return named or (["otlp"] if any(environ.get(name) for name in ENDPOINTS) else [])


def sampling(environ: Mapping[str, str]) -> Sampling:
    """What the environment says of sampling. Raises ValueError, which says what is wrong."""
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or PARENT_BASED + "always_on"
    kind = name.removeprefix(PARENT_BASED)
    if kind not in SAMPLERS:
        raise ValueError(
            f"OTEL_TRACES_SAMPLER: got {name!r}, expected {', '.join(SAMPLERS)}, or one of them after {PARENT_BASED!r}"
        )
    ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind)
    if ratio is None:
        argument = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1"
        try:
            ratio = float(argument)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio <= 1:
            raise ValueError(f"OTEL_TRACES_SAMPLER_ARG: got {argument!r}, expected a number from 0 to 1")
    return Sampling(name != kind, ratio)


def check_exporter(environ: Mapping[str, str]) -> None:
    """Raises ValueError if the environment asks for an exporter or a protocol that is not offered."""
    named = exporters(environ)
    if named != ["otlp"]:
        raise ValueError(f"OTEL_TRACES_EXPORTER: got {','.join(named)!r}, expected otlp or none")
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), OURS)
    if protocol != OURS:
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: got {protocol!r}, expected {OURS} (port 4318 of a collector)")


def prepare() -> None:
    """In the arbiter: import what the workers need to trace, so that they share its memory. Tells what is wrong."""
    if not exporters(os.environ):
        return
    try:
        import mpserve.telemetry.tracer  # noqa: F401
    except ImportError as error:
        logger.warning(
            "nothing is traced, though the OTEL_ variables ask for it: %s (pip install 'mpserve[otel]')", error
        )


def begin(slot: int) -> "Tracer | None":
    """In a worker, after the fork: make what traces, if the environment asks for it. Returns None if nothing is traced."""
    if not exporters(os.environ):
        return None
    try:
        from mpserve.telemetry.tracer import Tracer

        check_exporter(os.environ)
        _Process.tracer = Tracer(*sampling(os.environ), slot)
    except ImportError:  # ``prepare`` has told
        return None
    except ValueError as error:  # a wrong variable must not stop a server that answers
        logger.warning("nothing is traced: %s", error)
    return _Process.tracer


def tracer() -> "Tracer | None":
    """What traces in this process; None if nothing is traced."""
    return _Process.tracer


@contextmanager
def loading(name: str, attributes: Attributes) -> Iterator[None]:
    """The load of a model, as a trace of its own. Spans that the model makes meanwhile are its children."""
    if _Process.tracer is None:
        yield
    else:
        with _Process.tracer.loading(name, attributes):
            yield


@contextmanager
def calling(name: str, attributes: Attributes, headers: dict[str, str]) -> Iterator[None]:
    """A call of another server, in the trace of this context. ``headers`` get what tells that server of the trace."""
    if _Process.tracer is None:
        yield
    else:
        with _Process.tracer.calling(name, attributes, headers):
            yield


def leave_out(context: Context) -> None:
    """Let nothing be traced in this context until a trace is entered: a request that is not sampled must not begin traces."""
    if _Process.tracer is not None:
        context.run(_Process.tracer.leave_out)


def flush() -> None:
    """Send what has not been sent. Waits for the receiver, so call it in a thread."""
    if _Process.tracer is not None:
        _Process.tracer.flush()
