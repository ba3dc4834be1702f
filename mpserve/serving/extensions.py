"""The V2 extensions that are spoken, by the names that Triton gives them: what server metadata lists, whoever is asked."""

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
