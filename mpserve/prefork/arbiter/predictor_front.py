"""Chooses the client by which a transformer asks its predictor.

httpx2 and grpcio are extras. They are imported only if ``--predictor_host`` is set.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.predictor import Client, Predictor, PredictorConfig


def predictor(settings: Settings) -> Predictor | None:
    """In the arbiter: the predictor of this server, if ``--predictor_host`` is set. Imports the code of its client.

    Raises ConfigurationError: the package for its protocol is not installed.
    """
    if settings.predictor_host is None:
        return None
    config = PredictorConfig.of(settings)
    return Predictor(config, partial(_client(config.predictor_protocol), config))


def _client(protocol: str) -> Callable[[PredictorConfig], Client]:
    is_grpc = protocol == "grpc-v2"
    module, package, extra = ("grpc", "grpcio", "grpc") if is_grpc else ("httpx2", "httpx2", "transformer")
    if find_spec(module) is None:
        raise ConfigurationError(
            f"--predictor_host with --predictor_protocol={protocol} needs {package}, which is not installed:"
            f" pip install 'mpserve[{extra}]'"
        )
    if is_grpc:
        from mpserve.grpc.predictor import GrpcPredictor

        return GrpcPredictor
    from mpserve.http.predictor import RestPredictor

    return RestPredictor
