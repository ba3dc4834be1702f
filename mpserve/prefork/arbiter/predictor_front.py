"""Whether this server is a transformer, and which client its workers ask the predictor with.

httpx and grpcio are extras; where there is no ``--predictor_host``, nothing here imports them.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.predictor import Client, Predictor, PredictorConfig


def predictor(settings: Settings) -> Predictor | None:
    """In the arbiter: the predictor that the workers shall ask, if there is one. The code of its client comes with it.

    Raises:
        ConfigurationError: the package that speaks its protocol is not installed.
    """
    if settings.predictor_host is None:
        return None
    config = PredictorConfig.of(settings)
    return Predictor(config, partial(_client(config.predictor_protocol), config))


def _client(protocol: str) -> Callable[[PredictorConfig], Client]:
    if protocol == "grpc-v2":
        _need("grpc", "grpcio", "grpc", protocol)
        from mpserve.grpc.predictor import GrpcPredictor

        return GrpcPredictor
    _need("httpx", "httpx", "transformer", protocol)
    from mpserve.http.predictor import RestPredictor

    return RestPredictor


def _need(module: str, package: str, extra: str, protocol: str) -> None:
    if find_spec(module) is None:
        raise ConfigurationError(
            f"--predictor_host with --predictor_protocol={protocol} needs {package}, which is not installed:"
            f" pip install 'mpserve[{extra}]'"
        )
