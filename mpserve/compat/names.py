"""The names of the kserve SDK that are lent to scripts, and the reasons why others are not.

The tables name objects of mpserve, or objects of this folder that only scripts use. Each is imported on first use.

Source: the names of the kserve SDK 0.21 that its examples and public model servers import.
"""


def _names(module: str, names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names.split()}


_MESSAGES = _names("mpserve.protocol.messages", "InferInput InferOutput InferRequest InferResponse")
_PROTOBUF = _names(
    "mpserve.protocol.protobuf.inference_pb2", "InferParameter InferTensorContents ModelInferRequest ModelInferResponse"
)
_CONSTANTS = _names(
    "mpserve.compat.utils",
    "DEFAULT_GRPC_PORT DEFAULT_HTTP_PORT EXPLAINER_BASE_URL_FORMAT INFERENCE_CONTENT_LENGTH_HEADER KSERVE_LOGLEVEL"
    " MAX_GRPC_MESSAGE_LENGTH PredictorProtocol",
)
_ERRORS = _names("mpserve.errors", "InferenceError InvalidInput ModelNotFound ModelNotReady ServerNotReady") | _names(
    "mpserve.compat.errors",
    "ModelMissingError NoModelReady ServerNotLive UnsupportedProtocol WorkersShouldBeLessThanMaxWorkersError",
)
_UTILS = {
    **_names("mpserve.compat.payloads", "get_predict_input get_predict_response"),
    **_names("mpserve.compat.utils", "generate_uuid strtobool"),
}
_MODEL = "mpserve.serving.models.model:Model"
_SERVER = "mpserve.server:ModelServer"
_CONFIG = _names("mpserve.serving.models.predictor", "PredictorConfig")
_REPOSITORY = _names("mpserve.compat.repository", "ModelRepository")
_STORAGE = _names("mpserve.compat.utils", "Storage")

NAMES: dict[str, dict[str, str]] = {
    "kserve": {"Model": _MODEL, "ModelServer": _SERVER, **_MESSAGES, **_CONFIG, **_REPOSITORY, **_STORAGE},
    "kserve.constants": _CONSTANTS,
    "kserve.constants.constants": _CONSTANTS,
    "kserve.errors": _ERRORS,
    "kserve.logging": _names(
        "mpserve.compat.logging", "KSERVE_LOGGER_NAME KSERVE_TRACE_LOGGER_NAME configure_logging logger trace_logger"
    ),
    "kserve.model": {
        **dict.fromkeys(("BaseKServeModel", "InferenceModel", "Model"), _MODEL),
        "ModelInferRequest": _PROTOBUF["ModelInferRequest"],
        "PredictorProtocol": _CONSTANTS["PredictorProtocol"],
        **_CONFIG,
        **_names("mpserve.protocol.messages", "InferRequest InferResponse"),
    },
    "kserve.model_repository": _names("mpserve.compat.repository", "MODEL_MOUNT_DIRS ModelRepository"),
    "kserve.model_server": {
        "Model": _MODEL,
        "ModelServer": _SERVER,
        "app": "mpserve.compat.application:app",
        "parser": "mpserve.compat.flags:parser",
    },
    "kserve.predictor_config": _CONFIG,
    "kserve.protocol": {},
    "kserve.protocol.grpc": {},
    "kserve.protocol.grpc.grpc_predict_v2_pb2": _PROTOBUF,
    "kserve.protocol.infer_type": {
        **_MESSAGES,
        **_names("mpserve.protocol.messages", "RequestedOutput"),
        **_names("mpserve.compat.payloads", "deserialize_bytes_tensor serialize_byte_tensor"),
    },
    "kserve.protocol.rest": {},
    "kserve.storage": _STORAGE,
    "kserve.utils": _UTILS,
    "kserve.utils.numpy_codec": _names("mpserve.compat.utils", "from_np_dtype to_np_dtype"),
    "kserve.utils.utils": _UTILS,
    "kserve_storage": _STORAGE,
    # The SDK installs FastAPI. Scripts import Starlette's names from it.
    "fastapi": {
        **_names("starlette.exceptions", "HTTPException"),
        **_names("starlette.requests", "Request"),
        **_names("starlette.responses", "Response"),
    },
    "fastapi.middleware": _names("starlette.middleware", "Middleware"),
    "fastapi.middleware.cors": _names("starlette.middleware.cors", "CORSMiddleware"),
    "fastapi.middleware.gzip": _names("starlette.middleware.gzip", "GZipMiddleware"),
    "fastapi.middleware.trustedhost": _names("starlette.middleware.trustedhost", "TrustedHostMiddleware"),
    "fastapi.responses": _names("starlette.responses", "JSONResponse PlainTextResponse Response StreamingResponse"),
}
"""Module -> its names -> module and name in mpserve. A module without names only contains other modules."""

_CLIENTS = [
    "ApiClient", "Configuration", "InferenceGRPCClient", "InferenceRESTClient", "KServeClient", "RESTConfig", "V1", "api",
    "inference_client", "models", "rest",
]  # fmt: skip
_CLIENT = "mpserve lends only names for model servers; install kserve for its clients: pip install kserve"

UNSERVED = {
    "kserve.protocol.rest.openai": "mpserve does not offer the OpenAI protocol",
    "kserve.protocol.rest.timeseries": "mpserve does not offer the time-series protocol",
    "kserve.ray": "mpserve has worker processes of its own and no Ray; serve the class itself, with --workers",
}
"""Prefix of names that do not come from the kserve SDK either, since their models would not answer -> the reason."""

REFUSED = {
    **UNSERVED,
    **{f"kserve.{name}": _CLIENT for name in _CLIENTS},
    "fastapi": "only Starlette's names are lent; pip install fastapi for the others",
}
"""Prefix of names that are not lent -> the reason."""
