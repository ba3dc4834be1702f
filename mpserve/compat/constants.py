"""Constants of ``kserve.constants.constants`` that model servers use, with the values of mpserve."""

from enum import Enum

from mpserve.config.settings import Settings

DEFAULT_HTTP_PORT = 8080
DEFAULT_GRPC_PORT = 8081
EXPLAINER_BASE_URL_FORMAT = "{0}://{1}"
INFERENCE_CONTENT_LENGTH_HEADER = "inference-header-content-length"
KSERVE_LOGLEVEL = Settings.from_environment().log_level.upper()
MAX_GRPC_MESSAGE_LENGTH = Settings().grpc_max_receive_message_length


class PredictorProtocol(Enum):
    """The protocol between a transformer and its predictor."""

    REST_V1 = "v1"
    REST_V2 = "v2"
    GRPC_V2 = "grpc-v2"
