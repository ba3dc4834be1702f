"""The models of one worker, and the steps that bring a model up, at the start and for a later load.

This module decides nothing: the core and the reconciler decide which models are brought up, and when.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, ModelLoadError, NotSupported
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.json.limits import JsonLimits
from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.execution.rates import Rates
from mpserve.serving.models import readiness
from mpserve.serving.models.model import Model
from mpserve.serving.models.predictor import Predictor
from mpserve.serving.models.tensor_model import TensorModel, lacks_predict
from mpserve.serving.models.versions import age, refuse_twins
from mpserve.serving.repository import model_directory
from mpserve.serving.repository.desired_state import AT_START, ControlPlane, DesiredState, ModelSpec
from mpserve.serving.repository.loader import Library, ModelSource
from mpserve.serving.shared_memory.regions import Regions
from mpserve.state import rundir
from mpserve.state.scoreboard import Row, Scoreboard
from mpserve.telemetry import prometheus, tracing
from mpserve.telemetry.logging import mend
from mpserve.telemetry.logging import model as model_in_log
from mpserve.telemetry.memory import resident
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ModelVersions:
    """All versions of a model in a worker, which are brought up, served and ended together.
    Iterates from the oldest to the newest version, which answers requests without a version.
    """

    def __init__(self, spec: ModelSpec, versions: Iterable[ModelInstance]) -> None:
        self.spec = spec
        self._versions = sorted(versions, key=lambda instance: age(instance.model.version))
        self.newest = self._versions[-1]

    def __iter__(self) -> Iterator[ModelInstance]:
        return iter(self._versions)

    @property
    def versions(self) -> list[str]:
        return [instance.model.version for instance in self]

    def find(self, version: str) -> ModelInstance | None:
        for instance in self._versions:
            if instance.model.version == version:  # asked of the model: its load() may have set it
                return instance
        return None


class ModelHost:
    """The models of one worker. ``settings`` are read, never changed; ``predictor`` is the predictor of transformers."""

    def __init__(self, settings: Settings, predictor: Predictor | None = None) -> None:
        self.settings = settings
        self.json_limits = JsonLimits(settings.max_json_size, settings.max_json_elements)
        self.predictor = predictor
        self.board = Scoreboard(1)
        self.row = self.board.row(0)
        self.rates = Rates(settings, self.board, self.row)
        self.device = "cpu"
        self.native_threads = 0
        self.plane: ControlPlane | None = None
        self._regions: Regions | None = None
        self.desired = DesiredState(0, {})  # the newest state that this worker has finished with
        self.known: dict[str, list[ModelSource]] = {}  # the models of the start: the sources of their versions by name
        self.library: Library | None = None  # further models, if the user has a library
        self.models: dict[str, ModelVersions] = {}
        self.loading = ""  # the present step of a load, for messages about a deadline
        self._on_thread: Callable[[], object] = lambda: None
        self.helper = Executor("helper")  # slow work that belongs to no model
        self.asker = Executor("metadata")  # the user's code that tells about a model; it may hang
        self._loading_in = self.helper

    def take_place(self, board: Scoreboard, row: Row, directory: Path) -> None:
        """Take this row of the scoreboard, and follow the desired state and the shared memory regions of the directory."""

        def announce(generation: int) -> None:
            board.generation = generation

        self.board, self.row = board, row
        self.rates = Rates(self.settings, board, row)
        self.plane = ControlPlane(directory, announce)
        if self.settings.allow_client_shm:
            self._regions = Regions(directory, board)

    @property
    def regions(self) -> Regions:
        """The shared memory regions of clients. Raises NotSupported if the server was started without them."""
        if self._regions is None:
            raise NotSupported("this server uses no shared memory of clients, unless it has --allow_client_shm")
        return self._regions

    def follow_regions(self) -> None:
        """Let go of memory that a client has unregistered with another worker. To be called often."""
        if self._regions is not None:
            self._regions.follow()

    async def bring_up(self, name: str, spec: ModelSpec, helper: Executor) -> ModelVersions:
        """Construct, load, warm up and start a model, all its versions, beside the models that are served.
        An object of a script cannot be made again: if it is served, it is reloaded in place. If a version fails, the earlier
        versions are stopped. ``helper`` runs the steps before the model has threads.
        Raises ModelLoadError: the load failed; the message names the model and the reason; ConfigurationError if the model
        does not exist any more, or its declaration is impossible.
        """
        with self.step("the construction of a model", helper):
            models = await helper.run(self._obtain, name, spec)
        up: list[ModelInstance] = []
        try:
            for source, model in models:
                # A new object may have been loaded by its constructor.
                again = spec.revision != AT_START and source.build is None
                up.append(await self._bring_up(model, len(models) > 1, again))
        except BaseException:
            serving = set(self.models.get(name, ()))
            await asyncio.gather(*(instance.retire() for instance in up if instance not in serving))
            raise
        return ModelVersions(spec, up)

    async def _bring_up(self, model: Model, one_of_several: bool, again: bool) -> ModelInstance:
        before = next((instance for instance in self.models.get(model.name, ()) if instance.model is model), None)
        with self.step("the construction of a model", self.helper):
            instance = before or ModelInstance(model, self._on_thread, one_of_several, self.settings, self.rates)
        was_ready = model.ready
        in_log = model_in_log.set(instance.label)
        described = {"model_name": model.name, "model_version": model.version}
        try:
            with tracing.loading(f"load {model.name}", described):
                await self._load(instance, again)
        except BaseException:
            model.ready = was_ready
            if instance is not before:
                instance.let_go()
            raise
        finally:
            model_in_log.reset(in_log)
        return instance

    async def _load(self, instance: ModelInstance, again: bool) -> None:
        model = instance.model
        model.device, model._remote_predictor = self.device, self.predictor
        model.native_threads = self.native_threads
        start = time.monotonic()
        if again or model.deferred is not None or not model.loaded:
            readiness.forget(model)
            with self.step(f"load() of model {instance.label}", instance.executor):
                if await instance.call(model.load) is False:
                    raise ModelLoadError(f"model {instance.label}: load() returned False")
            model.loaded = True
        if not readiness.is_awaited(model):
            with self.step(f"warmup() of model {instance.label}", instance.executor):
                await instance.call(model.warmup)
        with self.step(f"start() of model {instance.label}", instance.executor):
            await instance.call(model.start)
            if model.engine:
                await model.start_engine()
        instance.declare(await self._declared_by(instance))
        seconds = time.monotonic() - start
        metrics().load_seconds.labels(model.name).observe(seconds)
        preloaded = f" (preload {model.preload_seconds:.2f} s)" if model.preload_seconds >= 0.005 else ""
        used = resident() >> 20
        logger.info("model %s loaded on %s in %.2f s%s, %d MiB", instance.label, self.device, seconds, preloaded, used)
        if self.predictor is None and lacks_predict(model):
            logger.warning("model %s has no method predict, and there is no --predictor_host", instance.label)
        if readiness.is_awaited(model):
            logger.warning(
                "model %s says that it is not ready yet; its requests get 503 until it sets self.ready = True",
                instance.label,
            )
        else:
            model.ready = True

    async def _declared_by(self, instance: ModelInstance) -> list[Tensor]:
        """The declared inputs of a model of the kserve SDK; none if the model cannot tell them."""
        if isinstance(instance.model, TensorModel):
            return []
        try:
            specs = await instance.call(instance.model.get_input_types)
            return [Tensor(spec["name"], spec["datatype"], list(spec["shape"])) for spec in specs]
        except Exception as error:
            logger.warning("model %s does not tell its inputs: %s: %s", instance.label, type(error).__name__, error)
            return []

    def _obtain(self, name: str, spec: ModelSpec) -> list[tuple[ModelSource, Model]]:
        """Construct the versions of a model."""
        sources = self.known.get(name, [])
        if spec.entries:
            sources = model_directory.find(self.settings, name, spec.entries)
        elif spec.revision != AT_START:
            sources = [source.fresh() for source in sources]
        if not sources and self.library is not None:
            sources = [self.library.source(name)]
        models = [source.obtain() for source in sources]
        if not models:
            raise ConfigurationError(f"there is no model {name} any more")
        for model in models:
            if model.name != name:
                raise ModelLoadError(f"expected a model named {name}, got one that names itself {model.name}")
        refuse_twins(models)
        return list(zip(sources, models, strict=True))

    @contextmanager
    def step(self, what: str, executor: Executor) -> Iterator[None]:
        """Name a step of a load, for messages about a deadline or a failure."""
        self.loading, self._loading_in = what, executor
        try:
            with prometheus.loading():
                yield
        except ModelLoadError as error:
            if error.__cause__ is not None:  # the user's code raised it, at its import or in its constructor
                mend()
                logger.error("%s failed", what, exc_info=error.__cause__)
            raise
        except ConfigurationError:
            raise
        except Exception as error:
            mend()
            logger.exception("%s failed", what)
            raise ModelLoadError(f"{what} failed: {type(error).__name__}: {error}") from error
        finally:
            mend()

    def publish(self) -> None:
        """Write to the scoreboard which models can answer here; a model may have changed its ``ready``."""
        self.row.models = sum(1 << group.spec.bit for group in self.models.values() if all(map(self.can_answer, group)))

    def can_answer(self, instance: ModelInstance) -> bool:
        """Whether this model can answer here, and its predictor too, if that is watched."""
        return bool(instance.model.ready) and (self.predictor is None or self.predictor.is_ready(instance.model.name))

    def forget(self, instance: ModelInstance) -> None:
        """Let go of a model that is not served any more, if it can be made again."""
        for source in self.known.get(instance.model.name, ()):
            if source.model is instance.model:
                source.forget()
        if self.library is not None:
            self.library.forget(instance.model)

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run slow work that belongs to no model, off the event loop."""
        return await self.helper.run(function, *args)

    def where(self) -> str:
        """The line that the present load has reached."""
        return self._loading_in.where() or self.helper.where()


def own_directory() -> Path:
    """A directory for the desired state of one server, removed when the process that made it ends."""
    return rundir.make("wanted")
