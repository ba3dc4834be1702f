"""The V2 extensions that the server supports, by Triton's names, for server metadata."""

from mpserve.config.settings import Settings
from mpserve.telemetry import tracing

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)

MANAGING = ("logging", "model_repository", "model_repository(unload_dependents)", "system_shared_memory", "trace")
"""What ``--management=off`` turns off."""


def extensions(settings: Settings) -> list[str]:
    names = [*EXTENSIONS, *(["system_shared_memory"] if settings.allow_client_shm else [])]
    names += [] if tracing.tracer() is None else ["trace"]
    return [name for name in names if settings.management != "off" or name not in MANAGING]
