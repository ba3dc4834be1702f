"""What the standard OTEL_ variables say: whether to trace, where to, and how many requests."""

from typing import Any

import pytest

from mpserve.telemetry.tracing import Sampling, check_exporter, exporters, sampling
from tests.cases import each

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}


@each("environ, expected", [
    ({}, []), ({"OTEL_SERVICE_NAME": "m", "OTEL_TRACES_SAMPLER": "always_on"}, []),
    (ENDPOINT, ["otlp"]), ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, ["otlp"]),
    ({**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"}, []), ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, []),
    ({"OTEL_TRACES_EXPORTER": "console"}, ["console"]), ({"OTEL_TRACES_EXPORTER": "otlp, console"}, ["otlp", "console"]),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, []),
])  # fmt: skip
def test_tracing_is_off_unless_the_environment_names_a_receiver(environ: dict[str, str], expected: list[str]) -> None:
    assert exporters(environ) == expected


@each("name, argument, expected", [
    ("", "", Sampling(True, 1.0)), ("always_on", "0.5", Sampling(False, 1.0)),
    ("parentbased_always_off", "", Sampling(True, 0.0)), ("traceidratio", "0.25", Sampling(False, 0.25)),
    ("parentbased_traceidratio", "0.01", Sampling(True, 0.01)), ("parentbased_traceidratio", "", Sampling(True, 1.0)),
    ("PARENTBASED_ALWAYS_ON", "", Sampling(True, 1.0)), ("xray", "", "OTEL_TRACES_SAMPLER: got 'xray'"),
    ("traceidratio", "2", "OTEL_TRACES_SAMPLER_ARG: got '2', expected a number from 0 to 1"),
    ("traceidratio", "half", "OTEL_TRACES_SAMPLER_ARG: got 'half'"), ("traceidratio", "nan", "got 'nan'"),
])  # fmt: skip
def test_the_samplers_of_opentelemetry(name: str, argument: str, expected: Any) -> None:
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected.replace("'", ".")):
            sampling(environ)
    else:
        assert sampling(environ) == expected


@each("environ, words", [
    ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER: got 'console', expected otlp or none"),
    ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: got 'grpc', expected http/protobuf"),
    ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, ""),
    (ENDPOINT, ""),
])  # fmt: skip
def test_what_cannot_be_exported_is_told(environ: dict[str, str], words: str) -> None:
    told = ""
    try:
        check_exporter(environ)
    except ValueError as error:
        told = str(error)
    assert told.startswith(words)
    assert bool(told) == bool(words)
