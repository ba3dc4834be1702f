"""What a user writes: ``Model``, the kserve SDK's class with two moments of our own, and the rules of loading it.

``preload()`` runs once in the arbiter and what it leaves on ``self`` is shared by all workers; ``load()`` runs in each
worker with ``self.device`` set. Names and signatures are the SDK's (kserve/model.py), so that an existing model changes
one import. Knows no protocol bytes, no HTTP, no process.
"""

import functools
import logging
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, cast

from mpserve.errors import AcceleratorInArbiter, NotSupported
from mpserve.serving.models import readiness
from mpserve.serving.models.predictor import Predictor, PredictorConfig

logger = logging.getLogger(__name__)
Spec = dict[str, Any]


class Model:
    """A model, in the kserve SDK's terms. Override ``predict`` and what else you need; each may be sync or async.

    Attributes:
        name: the name in URLs; given to the constructor or set on the class.
        version: the text in ``/versions/{v}``; models of one name need different versions.
        ready: whether the model answers now. ``load()`` may set it; otherwise the model is ready when ``load()`` has
            returned. A model may clear it at any time to be taken out of service.
        device: ``"cpu"`` or ``"cuda:0"``, set before ``load()``.
        native_threads: how many threads of its own a library may use in this worker, set before ``load()``; 0: as many as the
            library likes.
        concurrency: calls that may run at once in one worker; None: one for synchronous models, no limit for ``async def``.
        max_queue_size: requests that may wait in one worker; 0: no limit, None: the option decides.
        max_in_flight, max_rate: requests that may be in flight, and begin a second, in all workers together; 0: no limit, None:
            the options decide.
        priority_levels, default_priority_level: the levels of the request parameter ``priority``, and that of a request without
            it; 0: no levels, None: the options decide.
        request_timeout: seconds in which each request must be answered; 0: no limit, None: the option decides.
        sample: a request's payload for a warm-up, one predict before the model counts as ready; None: no warm-up.
        engine: whether ``start_engine()`` is to be awaited in each worker after ``load()`` (SDK).
        required_response_headers: whether ``predict`` and ``postprocess`` take a third argument, a dict that they fill
            with headers of the response (SDK, its argument ``return_response_headers``).
        takes_request: whether ``predict`` takes the ``Staged`` request instead of its headers, as runtimes that generate do.
    """

    name: str = "model"
    version: str = "1"
    ready: bool = False
    device: str = "cpu"
    native_threads: int = 0
    concurrency: int | None = None
    max_queue_size: int | None = None
    max_in_flight: int | None = None
    max_rate: float | None = None
    priority_levels: int | None = None
    default_priority_level: int | None = None
    request_timeout: float | None = None
    sample: Any = None
    engine: bool = False
    platform: str = ""
    required_response_headers: bool = False
    takes_request: bool = False

    deferred: AcceleratorInArbiter | None = None  # why ``load()`` must run in the workers, after a call in the arbiter
    loaded: bool = False  # whether ``load()`` has completed, in this process or in the arbiter that it was forked from
    preload_seconds: float = 0.0  # the time of the constructor and of ``preload()``
    _loading: bool = False
    _remote_predictor: Predictor | None = None

    def __init__(self, name: str | None = None, return_response_headers: bool = False) -> None:
        if name is not None:
            self.name = name
        if return_response_headers:
            self.required_response_headers = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "load" in cls.__dict__ and not iscoroutinefunction(cls.load):
            # setattr: mypy rightly refuses to assign to a method.
            setattr(cls, "load", _remembering(cls.load))  # noqa: B010

    def preload(self) -> None:
        """Load into host memory what all workers shall share. Runs once, in the arbiter, before any fork."""

    def load(self) -> Any:
        """Load the model on ``self.device``. Runs in each worker; return False if the load failed.

        A script may call it before ``ModelServer.start``, as SDK scripts do: a load that stays in host memory is not repeated
        in the workers.
        """
        self.ready = True
        return True

    def warmup(self) -> Any:
        """Run after ``load()`` and before the worker counts as ready. By default it predicts once on ``sample``."""
        return None if self.sample is None else self.predict(self.sample)

    def start(self) -> Any:
        """Run in each worker, on its event loop's process, once the model is loaded (SDK)."""

    async def start_engine(self) -> None:
        """Awaited in each worker after ``start()`` when ``engine`` is true (SDK)."""

    def stop(self) -> Any:
        """Run in each worker when it ends, after its last request (SDK)."""

    def stop_engine(self) -> Any:
        """Run after ``stop()`` when ``engine`` is true (SDK)."""

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        """First stage: the request's payload to what ``predict`` takes."""
        return payload

    def validate(self, payload: Any) -> Any:
        """Refuse a payload by raising ``InvalidInput``; runs between ``preprocess`` and ``predict`` (SDK)."""
        return payload

    @property
    def predictor_config(self) -> PredictorConfig | None:
        """Which predictor a transformer asks, from the moment on that the model is being loaded (SDK)."""
        return None if self._remote_predictor is None else self._remote_predictor.config

    if TYPE_CHECKING:

        def predict(self, *args: Any, **kwargs: Any) -> Any:
            """A type checker lets an override have any signature if it overrides this one."""

    else:

        def predict(self, payload, headers=None, *args, **kwargs):
            """Answer a request. V1 hands a dict (or bytes), V2 an ``InferRequest``.

            One that is not overridden asks the predictor of ``--predictor_host``; so does ``await super().predict(...)`` in
            an ``async def predict``, and ``super().predict(...)`` in a synchronous one, whose thread waits meanwhile. A third
            argument, ``response_headers``, is given the predictor's headers (SDK); most overrides have none.
            Raises NotSupported if the model has not overridden it, and there is no predictor; PredictorError if the predictor
            does not answer.
            """
            return self._ask_predictor(payload, headers, *args, **kwargs)

    def _ask_predictor(self, payload: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
        if self._remote_predictor is None:
            raise NotSupported(
                f"Model {self.name} does not implement predict, and there is no predictor to ask (--predictor_host)."
            )
        return self._remote_predictor.predict(self.name, payload, headers or {}, *args, **kwargs)

    def explain(self, payload: Any, headers: Any = None) -> Any:
        """Explain an answer (V1 ``:explain``). Raises NotSupported if the model has not overridden it."""
        raise NotSupported(f"Model {self.name} does not implement explain.")

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        """Last stage: what ``predict`` gave to the answer's payload."""
        return result

    def takes_missing(self) -> bool:
        """Whether null in JSON is a missing value in every input: NaN among numbers, None among text. Asked after ``load``."""
        return False

    def get_input_types(self) -> list[Spec]:
        """The inputs for the V2 metadata: dicts of ``name``, ``datatype``, ``shape`` (-1: any size)."""
        return []

    def get_output_types(self) -> list[Spec]:
        """The outputs for the V2 metadata, as ``get_input_types``."""
        return []


def _remembering(load: Callable[..., Any]) -> Callable[..., Any]:
    """``load`` that remembers whether it completed, and that stops before CUDA in the arbiter.

    So a script's early ``model.load()`` either counts as preloaded or is deferred to the workers, and the script goes on.
    """

    @functools.wraps(load)
    def run(self: Model, *args: Any, **kwargs: Any) -> Any:
        if self._loading:  # super().load(): the outermost call decides
            return load(self, *args, **kwargs)
        self._loading = True
        try:
            result = load(self, *args, **kwargs)
        except AcceleratorInArbiter as reached:
            self.deferred = reached
            logger.warning("model %s: load() reached for CUDA in the arbiter and was stopped: %s. %s",
                           self.name, reached.where, "It will be loaded in each worker instead.")  # fmt: skip
            return False
        finally:
            self._loading = False
        self.deferred = None
        # A thread that still loads does not survive a fork, so each worker loads such a model again.
        self.loaded = result is not False and not readiness.is_awaited(self)
        return result

    return cast(Callable[..., Any], run)
