"""``kserve.PredictorConfig``: where a transformer finds its predictor, as scripts write it down."""

from dataclasses import dataclass

from mpserve.compat.constants import PredictorProtocol


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor behind a transformer; the arguments are the SDK's, in its order."""

    predictor_host: str | None
    predictor_protocol: str = PredictorProtocol.REST_V1.value
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: int = 600
    predictor_request_retries: int = 0
    predictor_health_check: bool = False

    @property
    def predictor_base_url(self) -> str:
        """``http://host`` or ``https://host``."""
        return f"{'https' if self.predictor_use_ssl else 'http'}://{self.predictor_host}"
