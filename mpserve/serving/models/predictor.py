"""The predictor behind a transformer: another server, which answers the requests that the models here have prepared.

A ``predict`` that a model has not overridden asks the predictor, and so does ``super().predict``. This module has the deadline,
the retries, the forwarded headers and the watch over readiness. A ``Client`` speaks one protocol; the floors above bring it.

Source: the kserve SDK's model.py, predictor_config.py and protocol/dataplane.py (the interface only).
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from mpserve.config.settings import Settings
from mpserve.errors import Code, PredictorError
from mpserve.telemetry import tracing
from mpserve.telemetry.logging import request_id

logger = logging.getLogger(__name__)
Headers = dict[str, str]
FORWARDED = ("authorization", "content-type", "traceparent", "tracestate", "x-b3-traceid")
"""Headers that are forwarded, beside the request id. The content type belongs to bytes that no model has changed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0  # seconds between attempts, doubled each time, as in the SDK's gRPC client
CHECK_EVERY = 1.0
CHECK_TIMEOUT = 5.0  # seconds; a predictor that has not answered by then counts as not ready


@dataclass(frozen=True)
class PredictorConfig:
    """The predictor, and the options of the same names (``docs/reference/options.md``), in the SDK's order."""

    predictor_host: str | None
    predictor_protocol: str = "v1"
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: float = 600.0
    predictor_request_retries: int = 0
    predictor_health_check: bool = False
    predictor_ca_file: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> "PredictorConfig":
        return cls(**{field.name: getattr(settings, _option(field.name)) for field in fields(cls)})

    def options(self) -> dict[str, Any]:
        return {_option(name): value for name, value in asdict(self).items()}

    @property
    def predictor_base_url(self) -> str:
        return f"{'https' if self.predictor_use_ssl else 'http'}://{self.predictor_host}"


def _option(field: str) -> str:
    return "enable_predictor_health_check" if field == "predictor_health_check" else field


class Client(Protocol):
    """Speaks one protocol to the predictor, over connections of this process. A client neither retries nor keeps a deadline."""

    async def predict(self, model: str, payload: Any, headers: Headers) -> tuple[Any, Headers]:
        """The answer of the predictor's model of that name, and the headers of the answer.
        Raises PredictorError: the predictor did not answer; InferenceError if the payload cannot be sent, or the answer does
        not follow the protocol.
        """

    async def is_ready(self, model: str) -> bool:
        """Whether the predictor says that its model is ready. Raises PredictorError if the predictor does not answer."""

    async def close(self) -> None:
        """Close the connections."""


class Predictor:
    """The predictor of this process. Made before the fork, started in the worker.

    Args:
        config: the configuration.
        connect: makes the client, on the event loop of the client.
    """

    def __init__(self, config: PredictorConfig, connect: Callable[[], Client]) -> None:
        self.config = config
        self._connect = connect
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ready: frozenset[str] = frozenset()

    def start(self, models: Callable[[], Iterable[str]]) -> None:
        """Make the client, on the running loop, and watch the predictor's ``models`` if the configuration says so.
        Raises ConfigurationError if the client cannot be made.
        """
        self._loop = asyncio.get_running_loop()
        self._client = self._connect()
        if self.config.predictor_health_check:
            self._watch = asyncio.ensure_future(self._keep_watch(models))

    async def close(self) -> None:
        """End the watch, and close the connections."""
        if self._watch is not None:
            self._watch.cancel()
        if self._client is not None:
            await self._client.close()

    def is_ready(self, model: str) -> bool:
        """Whether the predictor's model was ready at the last check, or is not checked."""
        return not self.config.predictor_health_check or model in self._ready

    def predict(self, model: str, payload: Any, headers: Headers, response_headers: Headers | None = None) -> Any:
        """Ask the predictor: returns an awaitable on an event loop, and the answer itself in a model's thread, which may wait.
        The headers of the answer are added to ``response_headers``.
        Raises PredictorError: there is no answer; the error says whose fault that is; InferenceError if the payload cannot be
        sent, or the answer does not follow the protocol.
        """
        asking = self._predict(model, payload, headers, response_headers)
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return self._on_own_loop(asking).result()
        # A model may run a loop of its own in its thread; the connections belong to ours.
        return asking if here is self._loop else asyncio.wrap_future(self._on_own_loop(asking))

    def _on_own_loop(self, asking: Coroutine[Any, Any, Any]) -> Future[Any]:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(asking, self._loop)

    async def _predict(self, model: str, payload: Any, headers: Headers, response_headers: Headers | None) -> Any:
        limit = self.config.predictor_request_timeout_seconds
        forwarded = _forwarded(headers)
        described = {"server.address": str(self.config.predictor_host), "protocol": self.config.predictor_protocol}
        try:
            with tracing.calling(f"predictor {model}", described, forwarded):
                asking = self._persist(model, payload, forwarded)
                answer, answer_headers = await asyncio.wait_for(asking, limit)
        except asyncio.TimeoutError:
            late = PredictorError(Code.TIMED_OUT, f"The predictor did not answer within {limit:g} s.")
            logger.warning("predictor %s: %s", self.config.predictor_host, late)
            raise late from None
        except PredictorError as error:
            if error.code is Code.NOT_READY:
                logger.warning("predictor %s: %s %s", self.config.predictor_host, error, error.reason)
            raise
        if response_headers is not None:
            response_headers.update(answer_headers)
        return answer

    async def _persist(self, model: str, payload: Any, headers: Headers) -> tuple[Any, Headers]:
        assert self._client is not None
        pause = FIRST_PAUSE
        for _ in range(self.config.predictor_request_retries):
            try:
                return await self._client.predict(model, payload, headers)
            except PredictorError as error:
                if error.code is not Code.NOT_READY:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return await self._client.predict(model, payload, headers)

    async def _keep_watch(self, models: Callable[[], Iterable[str]]) -> None:
        while True:
            names = list(models())
            ready = await asyncio.gather(*map(self._says_ready, names))
            self._ready = frozenset(name for name, is_ready in zip(names, ready, strict=True) if is_ready)
            await asyncio.sleep(CHECK_EVERY)

    async def _says_ready(self, model: str) -> bool:
        assert self._client is not None
        reason = "it says so"
        try:
            ready = await asyncio.wait_for(self._client.is_ready(model), CHECK_TIMEOUT)
        except asyncio.TimeoutError:
            ready, reason = False, f"no answer within {CHECK_TIMEOUT:g} s"
        except PredictorError as error:
            ready, reason = False, f"{error} {error.reason}"
        except Exception as error:  # whatever it is, the watch goes on
            ready, reason = False, repr(error)
        if ready != (model in self._ready):
            level, state = (logging.INFO, "ready") if ready else (logging.WARNING, "not ready")
            logger.log(level, "predictor %s: model %s is %s: %s", self.config.predictor_host, model, state, reason)
        return ready


def _forwarded(headers: Headers) -> Headers:
    """The headers to forward, with the id of the request, so that both servers log the same id."""
    forwarded = {name: headers[name] for name in FORWARDED if name in headers}
    identity = request_id.get()
    return forwarded if identity == "-" else {**forwarded, "x-request-id": identity}
