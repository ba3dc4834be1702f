"""The V2 extensions that the server supports, by Triton's names, for server metadata."""

from mpserve.config.settings import Settings

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)


def extensions(settings: Settings) -> list[str]:
    return [*EXTENSIONS, *(["system_shared_memory"] if settings.allow_client_shm else [])]
