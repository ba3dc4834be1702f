"""The V2 extensions that are spoken, by the names that Triton gives them: what server metadata lists, whoever is asked."""

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
    """Those that a server with these options speaks."""
    return [*EXTENSIONS, *(["system_shared_memory"] if settings.allow_client_shm else [])]
