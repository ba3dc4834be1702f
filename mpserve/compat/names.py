"""Which names of the kserve SDK are lent to scripts, what each stands for here, and why others are not.

Only tables: what is named here is imported when a script asks for it. A name stands for the very object of mpserve where
there is one; what exists only for such scripts is in this folder.

Source: the kserve SDK 0.21 (the names only), and what its examples and public model servers import of it.
"""

_MESSAGES = {
    name: f"mpserve.protocol.messages:{name}"
    for name in ("InferInput", "InferOutput", "InferRequest", "InferResponse", "RequestedOutput")
}
_PROTOBUF = {
    name: f"mpserve.protocol.protobuf.inference_pb2:{name}"
    for name in ("InferParameter", "InferTensorContents", "ModelInferRequest", "ModelInferResponse")
}
_CONSTANTS = {
    name: f"mpserve.compat.constants:{name}"
    for name in (
        "DEFAULT_GRPC_PORT",
        "DEFAULT_HTTP_PORT",
        "EXPLAINER_BASE_URL_FORMAT",
        "INFERENCE_CONTENT_LENGTH_HEADER",
        "KSERVE_LOGLEVEL",
        "MAX_GRPC_MESSAGE_LENGTH",
        "PredictorProtocol",
    )
}
_PAYLOADS = {name: f"mpserve.compat.payloads:{name}" for name in ("get_predict_input", "get_predict_response")}
_UTILS = _PAYLOADS | {name: f"mpserve.compat.utils:{name}" for name in ("generate_uuid", "strtobool")}
_ERRORS = {
    name: f"mpserve.errors:{name}"
    for name in ("InferenceError", "InvalidInput", "ModelNotFound", "ModelNotReady", "ServerNotReady")
} | {
    name: f"mpserve.compat.errors:{name}"
    for name in (
        "ModelMissingError",
        "NoModelReady",
        "ServerNotLive",
        "UnsupportedProtocol",
        "WorkersShouldBeLessThanMaxWorkersError",
    )
}
_LOGGING = {
    name: f"mpserve.compat.logging:{name}"
    for name in ("KSERVE_LOGGER_NAME", "KSERVE_TRACE_LOGGER_NAME", "configure_logging", "logger", "trace_logger")
}
_MODEL = "mpserve.serving.models.model:Model"
_SERVER = "mpserve.server:ModelServer"
_CONFIG = {"PredictorConfig": "mpserve.serving.models.predictor:PredictorConfig"}
_REPOSITORY = {"ModelRepository": "mpserve.compat.repository:ModelRepository"}
_STORAGE = {"Storage": "mpserve.compat.storage:Storage"}

NAMES: dict[str, dict[str, str]] = {
    "kserve": {
        "Model": _MODEL,
        "ModelServer": _SERVER,
        **{name: home for name, home in _MESSAGES.items() if name != "RequestedOutput"},
        **_CONFIG,
        **_REPOSITORY,
        **_STORAGE,
    },
    "kserve.constants": _CONSTANTS,
    "kserve.constants.constants": _CONSTANTS,
    "kserve.errors": _ERRORS,
    "kserve.logging": _LOGGING,
    "kserve.model": {
        "BaseKServeModel": _MODEL,
        "InferenceModel": _MODEL,
        "Model": _MODEL,
        "ModelInferRequest": _PROTOBUF["ModelInferRequest"],
        "PredictorProtocol": _CONSTANTS["PredictorProtocol"],
        **_CONFIG,
        **{name: _MESSAGES[name] for name in ("InferRequest", "InferResponse")},
    },
    "kserve.model_repository": {
        "MODEL_MOUNT_DIRS": "mpserve.compat.repository:MODEL_MOUNT_DIRS",
        **_REPOSITORY,
    },
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
        **{
            name: f"mpserve.compat.payloads:{name}" for name in ("deserialize_bytes_tensor", "serialize_byte_tensor")
        },
    },
    "kserve.protocol.rest": {},
    "kserve.storage": _STORAGE,
    "kserve.utils": _UTILS,
    "kserve.utils.numpy_codec": {
        name: f"mpserve.compat.utils:{name}" for name in ("from_np_dtype", "to_np_dtype")
    },
    "kserve.utils.utils": _UTILS,
    "kserve_storage": _STORAGE,
    # The SDK brings FastAPI, and scripts import from it what FastAPI itself has from Starlette.
    "fastapi": {
        "HTTPException": "starlette.exceptions:HTTPException",
        "Request": "starlette.requests:Request",
        "Response": "starlette.responses:Response",
    },
    "fastapi.middleware": {"Middleware": "starlette.middleware:Middleware"},
    "fastapi.middleware.cors": {"CORSMiddleware": "starlette.middleware.cors:CORSMiddleware"},
    "fastapi.middleware.gzip": {"GZipMiddleware": "starlette.middleware.gzip:GZipMiddleware"},
    "fastapi.middleware.trustedhost": {
        "TrustedHostMiddleware": "starlette.middleware.trustedhost:TrustedHostMiddleware"
    },
    "fastapi.responses": {
        name: f"starlette.responses:{name}"
        for name in ("JSONResponse", "PlainTextResponse", "Response", "StreamingResponse")
    },
}  # fmt: skip
"""Module -> its names -> where each is here. A module without names is only on the way to others."""

_CLIENT = "mpserve lends what a model server uses; install kserve for its clients, and run that script with python"

REFUSED = {
    "kserve.protocol.rest.openai": "mpserve does not offer the OpenAI protocol",
    "kserve.protocol.rest.timeseries": "mpserve does not offer the time-series protocol",
    "kserve.ray": "mpserve has worker processes of its own and no Ray; serve the class itself, with --workers",
    **dict.fromkeys(
        (
            "kserve.ApiClient",
            "kserve.Configuration",
            "kserve.InferenceGRPCClient",
            "kserve.InferenceRESTClient",
            "kserve.KServeClient",
            "kserve.RESTConfig",
            "kserve.V1",
            "kserve.api",
            "kserve.inference_client",
            "kserve.models",
            "kserve.rest",
        ),
        _CLIENT,
    ),
    "fastapi": "of FastAPI only what it has from Starlette is lent; pip install fastapi for the rest",
}
"""The beginning of a name that is not lent -> why not."""
