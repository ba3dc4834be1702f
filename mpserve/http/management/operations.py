"""The OpenAPI description of each route. The schemas are in ``openapi.json``.

Each route in ``app.py`` needs a row here; a test compares them.
"""

from collections.abc import Mapping
from typing import NamedTuple

JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain"
EVENTS = "text/event-stream"
HTML = "text/html"
EVENT = "application/cloudevents+json"
BINARY_LENGTH = "Inference-Header-Content-Length"

FAULTS = {
    400: "The request is invalid",
    401: "The caller is not known, or the predictor of the model requires authentication",
    403: "The client may not manage the server, or the predictor of the model denies access",
    404: "The model, or its version, does not exist",
    413: "The body is larger than the server allows",
    415: "The content coding of the body is not known",
    429: "The caller, or the model, has as many requests as a limit allows; or the predictor of the model is overloaded",
    500: "The model failed",
    501: "The model or the server does not support this",
    503: "The model or the server is not ready or is overloaded",
    504: "The request did not meet its deadline",
}
"""By status: the reason for ``{"error": ...}``."""

FINDING = (404, 503)
READING = (400, 413, 415)
MANAGING = (400, 403, 404, 413, 415, 500, 501, 503)
RUNNING = tuple(FAULTS)
"""The faults of a route that finds a model, reads a body, loads or unloads a model, or runs a model."""


class Operation(NamedTuple):
    """The description of a route. ``answers`` and ``takes`` are schemas by media type."""

    summary: str
    answers: Mapping[str, str]
    faults: tuple[int, ...] = ()
    takes: Mapping[str, str] = {}
    request_headers: tuple[str, ...] = ()
    response_headers: tuple[str, ...] = ()


def _json(schema: str) -> dict[str, str]:
    return {JSON: schema}


PREDICT = Operation(
    "Predict", {JSON: "Predictions", EVENT: "CloudEvent", TEXT: "Text", OCTETS: "Any"}, RUNNING,
    {JSON: "PredictRequest", EVENT: "CloudEvent"}, ("Accept-Encoding",), ("Content-Encoding",),
)  # fmt: skip
INFER = Operation(
    "Infer", {JSON: "InferResponse", OCTETS: "Any"}, RUNNING,
    {JSON: "InferRequest", OCTETS: "Any"}, (BINARY_LENGTH, "Accept-Encoding"), (BINARY_LENGTH, "Content-Encoding"),
)  # fmt: skip
GENERATE = Operation(
    "Generate one answer", {JSON: "Generated"}, RUNNING,
    {JSON: "GenerateRequest"}, ("Accept-Encoding",), ("Content-Encoding",),
)  # fmt: skip
GENERATE_STREAM = GENERATE._replace(
    summary="Generate any number of answers as server-sent events", answers={EVENTS: "Any"}
)
READY = Operation("Whether a model is ready", _json("ModelReady"), FINDING)
METADATA = Operation("Versions, platform, inputs and outputs of a model", _json("ModelMetadata"), (*FINDING, 500))
STATISTICS = Operation("The statistics of a model", _json("ModelStatistics"), FINDING)
REGIONS = Operation("Registered shared memory regions", _json("Regions"), (403, 404, 501))
REGISTER = Operation(
    "Register a shared memory region with every worker", _json("Done"), (*READING, 403, 501), _json("RegionRequest")
)
UNREGISTER = Operation("Unregister one shared memory region, or all", _json("Done"), (403, 501))
CUDA_REGIONS = Operation("CUDA shared memory regions: none", _json("Regions"), (403,))
CUDA_REGISTER = Operation("Refused: CUDA shared memory is not supported", _json("Done"), (403, 501))
CUDA_UNREGISTER = Operation("Unregister CUDA shared memory regions: no effect", _json("Done"), (403,))
CONFIGURATION = Operation("The configuration of a model", _json("ModelConfiguration"), (*FINDING, 500))
TRACING = Operation("The trace settings", _json("TraceSettings"), (403,))
SET_TRACING = Operation(
    "Set trace settings in every worker: a change is refused if the server does not trace",
    _json("TraceSettings"),
    (*READING, 403, 501),
    _json("TraceSettingsRequest"),
)

OPERATIONS: Mapping[str, Operation] = {
    "GET /": Operation("Whether the server is alive; for a browser a page of its state", {JSON: "Alive", HTML: "Text"}),
    "GET /status": Operation(
        "Workers, models and their figures, once or as a server-sent event each second", {JSON: "Any", EVENTS: "Any"}
    ),
    "GET /metrics": Operation(
        "Prometheus metrics of all workers", {TEXT: "Text", "application/openmetrics-text": "Text"}
    ),
    "GET /openapi.json": Operation("This document", _json("Any")),
    "GET /docs": Operation("A page of this document", {HTML: "Text"}),
    # MLflow's scoring server, and SageMaker
    "POST /invocations": PREDICT._replace(summary="Predict by the only model", takes={JSON: "Any", "text/csv": "Text"}),
    "GET /ping": Operation("Whether every model is ready", _json("Ready"), (503,)),
    "GET /health": Operation("Whether every model is ready", _json("Ready"), (503,)),
    "GET /version": Operation("The version of the server", {TEXT: "Text"}),
    # V1
    "GET /v1/models": Operation("Names of all models", _json("ModelList")),
    "GET /v1/models/{model}": READY,
    "POST /v1/models/{model}:predict": PREDICT,
    "POST /v1/models/{model}:explain": PREDICT._replace(summary="Explain"),
    # V2, the Open Inference Protocol
    "GET /v2": Operation("Name, version and extensions of the server", _json("ServerMetadata")),
    "GET /v2/health/live": Operation("Whether the server is alive", _json("Live")),
    "GET /v2/health/ready": Operation("Whether every model is ready", _json("Ready"), (503,)),
    "GET /v2/models": Operation("Names of all models", _json("ModelList")),
    "GET /v2/models/{model}": METADATA,
    "GET /v2/models/{model}/ready": READY,
    "POST /v2/models/{model}/infer": INFER,
    "GET /v2/models/{model}/versions/{version}": METADATA,
    "GET /v2/models/{model}/versions/{version}/ready": READY,
    "POST /v2/models/{model}/versions/{version}/infer": INFER,
    # Generate extension
    "POST /v2/models/{model}/generate": GENERATE,
    "POST /v2/models/{model}/generate_stream": GENERATE_STREAM,
    "POST /v2/models/{model}/versions/{version}/generate": GENERATE,
    "POST /v2/models/{model}/versions/{version}/generate_stream": GENERATE_STREAM,
    # Model configuration extension
    "GET /v2/models/{model}/config": CONFIGURATION,
    "GET /v2/models/{model}/versions/{version}/config": CONFIGURATION,
    # Statistics extension
    "GET /v2/models/stats": STATISTICS._replace(summary="The statistics of all models", faults=()),
    "GET /v2/models/{model}/stats": STATISTICS,
    "GET /v2/models/{model}/versions/{version}/stats": STATISTICS,
    # Trace and logging extensions
    "GET /v2/trace/setting": TRACING,
    "POST /v2/trace/setting": SET_TRACING,
    "GET /v2/models/{model}/trace/setting": TRACING._replace(faults=(403, *FINDING)),
    "POST /v2/models/{model}/trace/setting": SET_TRACING._replace(faults=(*READING, 403, *FINDING, 501)),
    "GET /v2/logging": Operation("The log settings", _json("LogSettings"), (403,)),
    "POST /v2/logging": Operation(
        "Change log settings in every worker", _json("LogSettings"), (*READING, 403, 501), _json("LogSettingsRequest")
    ),
    # Model repository extension
    "POST /v2/repository/index": Operation(
        "All models and their states", _json("RepositoryIndex"), READING, _json("RepositoryIndexRequest")
    ),
    "POST /v2/repository/models/{model}/load": Operation(
        "Load a model, or load it again, in every worker", _json("Loaded"), MANAGING, _json("RepositoryRequest")
    ),
    "POST /v2/repository/models/{model}/unload": Operation(
        "Unload a model in every worker", _json("Unloaded"), MANAGING, _json("RepositoryRequest")
    ),
    # Shared memory extension
    "GET /v2/systemsharedmemory/status": REGIONS,
    "GET /v2/systemsharedmemory/region/{region}/status": REGIONS,
    "POST /v2/systemsharedmemory/region/{region}/register": REGISTER,
    "POST /v2/systemsharedmemory/region/{region}/unregister": UNREGISTER,
    "POST /v2/systemsharedmemory/unregister": UNREGISTER,
    "GET /v2/cudasharedmemory/status": CUDA_REGIONS,
    "GET /v2/cudasharedmemory/region/{region}/status": CUDA_REGIONS,
    "POST /v2/cudasharedmemory/region/{region}/register": CUDA_REGISTER,
    "POST /v2/cudasharedmemory/region/{region}/unregister": CUDA_UNREGISTER,
    "POST /v2/cudasharedmemory/unregister": CUDA_UNREGISTER,
}
"""Every route, by its method and path."""
