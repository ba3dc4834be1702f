"""One server's models put together: preload in the master, load, serve and stop in a worker.

Every front end looks things up here and nowhere else, and holds no state of its own. It knows its row of the scoreboard
and no process: who forks, and when, is the business of the floors above.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from mpserve.errors import AcceleratorInMaster, ConfigurationError, ModelLoadError, ModelNotFound, ServerNotReady
from mpserve.logging import model as model_in_log
from mpserve.metrics import metrics
from mpserve.scoreboard import Row, Scoreboard, State
from mpserve.serving.executor import Executor
from mpserve.serving.loader import ModelSource
from mpserve.serving.model import Model, Spec
from mpserve.serving.pipeline import Pipeline
from mpserve.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Served:
    """A model in a worker: its threads, its pipeline, its place in the wanted set.

    Raises:
        ConfigurationError: the model declares what cannot be: its concurrency, or a tensor's datatype.
    """

    def __init__(self, model: Model, index: int, on_thread: Callable[[], object]) -> None:
        if model.concurrency is not None and model.concurrency < 1:
            raise ConfigurationError(
                f"model {model.name}: concurrency is {model.concurrency}, expected None or a number of 1 or more"
            )
        self.model = model
        self.index = index
        self.executor = Executor(model.name, model.concurrency or 1, on_thread)
        self.pipeline = Pipeline(model, self.executor, metrics().stage_observers(model.name))

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        return await _call(method, self.executor)


async def _call(method: Callable[[], Any], executor: Executor) -> Any:
    if inspect.iscoroutinefunction(method):
        return await method()
    result = await executor.run(method)
    return await result if inspect.isawaitable(result) else result


class ServerCore:
    """The models of one server, in this process.

    Args:
        settings: the options; read, never changed.
        find: gives the sources of the models that are wanted. Called in the master, and again in a worker if it reached
            for CUDA there.
    """

    def __init__(self, settings: Settings, find: Callable[[], Sequence[ModelSource]]) -> None:
        self.settings = settings
        self._find = find
        self.sources: Sequence[ModelSource] | None = None
        self.board = Scoreboard(1)
        self.row = self.board.row(0)
        self.managed = False
        """Whether a worker of ours loads and stops the models; else the ASGI lifespan does."""
        self.device = "cpu"
        self._on_thread: Callable[[], object] = lambda: None
        self.served: dict[str, Served] = {}
        self.loading = ""
        """What is being loaded right now, for the words of a deadline."""
        self._offload = Executor("helper")
        self._loading_in = self._offload

    def preload(self) -> None:
        """Find, construct and preload the models, in the master.

        Raises:
            ModelLoadError: a model could not be constructed or preloaded.
        """
        try:
            self.sources = self._find()
        except AcceleratorInMaster as reached:
            logger.warning("the model's code reached for CUDA in the master and was stopped: %s. %s",
                           reached.where, "It will be imported and loaded in each worker instead.")  # fmt: skip
            return
        for source in self.sources:
            source.preload()

    @property
    def names(self) -> list[str]:
        """The names of all wanted models, in their order, loaded or not."""
        return [source.model.name for source in self.sources or () if source.model is not None]

    def attach(self, board: Scoreboard, row: Row, device: str, on_thread: Callable[[], object]) -> None:
        """Serve under a worker of ours: its row of the shared scoreboard, its device, what model threads begin with."""
        self.board, self.row, self.device, self.managed = board, row, device, True
        self._on_thread = on_thread

    def begin_alone(self) -> None:
        """Serve under a worker that is not ours, with a scoreboard of its own.

        It is made now, in the worker: one made before a fork would be shared by workers that all take themselves for
        its only one.
        """
        self.board = Scoreboard(1)
        self.row = self.board.row(0)
        self.row.state = State.LOADING

    async def load(self) -> None:
        """Load and warm up every wanted model in this process.

        Raises:
            ModelLoadError: a model failed; the message names it and the reason.
        """
        if self.sources is None:
            with self._step("the import of the model's code", self._offload):
                self.sources = await self.offload(self._find)
        for index, source in enumerate(self.sources):
            await self._load(source, index)
        if len(self.served) < len(self.sources):
            raise ConfigurationError(f"two models have one name: {', '.join(self.names)}")

    async def _load(self, source: ModelSource, index: int) -> None:
        with self._step("the construction of a model", self._offload):
            model = await self.offload(source.obtain)
            served = Served(model, index, self._on_thread)
        in_log = model_in_log.set(model.name)
        model.device = self.device
        start = time.monotonic()
        if model.deferred is not None or not model.loaded:
            with self._step(f"load() of model {model.name}", served.executor):
                if await served.call(model.load) is False:
                    raise ModelLoadError(f"model {model.name}: load() returned False")
            model.loaded = True
        with self._step(f"warmup() of model {model.name}", served.executor):
            await served.call(model.warmup)
        with self._step(f"start() of model {model.name}", served.executor):
            await served.call(model.start)
            if model.engine:
                await model.start_engine()
        seconds = time.monotonic() - start
        metrics().load_seconds.labels(model.name).observe(seconds)
        model.ready = True
        self.served[model.name] = served
        logger.info("model %s loaded on %s in %.2f s", model.name, self.device, seconds)
        model_in_log.reset(in_log)

    @contextmanager
    def _step(self, what: str, executor: Executor) -> Iterator[None]:
        """Name a step of the load, for the words of a deadline and of a failure."""
        self.loading, self._loading_in = what, executor
        try:
            yield
        except (ModelLoadError, ConfigurationError):
            raise
        except Exception as error:
            logger.exception("%s failed", what)
            raise ModelLoadError(f"{what} failed: {type(error).__name__}: {error}") from error

    def open(self) -> None:
        """Tell all workers that this one can answer from now on."""
        self.publish()
        self.row.state = State.READY
        self.row.attempts = 0
        self.board.mark_ever_ready()

    def publish(self) -> None:
        """Write which models can answer here to the scoreboard; a model may have cleared its ``ready`` or set it."""
        self.row.models = sum(1 << served.index for served in self.served.values() if served.model.ready)

    async def describe(self, served: Served) -> tuple[list[Spec], list[Spec]]:
        """A model's inputs and outputs. Not asked for in the model's own threads, where it would wait for predicts."""
        model = served.model
        return await _call(model.get_input_types, self._offload), await _call(model.get_output_types, self._offload)

    async def stop(self) -> None:
        """Run every model's ``stop``, each in its own thread, all at once. A failing one is logged."""
        await asyncio.gather(*(self._stop(served) for served in self.served.values()))
        self._offload.close()

    async def _stop(self, served: Served) -> None:
        try:
            await served.call(served.model.stop)
            if served.model.engine:
                await served.call(served.model.stop_engine)
        except Exception:
            logger.exception("stop() of model %s failed", served.model.name)
        served.executor.close()

    def find(self, name: str, version: str | None = None) -> Served:
        """The model that a request names.

        Raises:
            ModelNotFound: no such model, or not this version of it.
        """
        served = self.served.get(name)
        if served is None:
            if self.row.state == State.LOADING and (not self.names or name in self.names):
                raise ServerNotReady(f"Model with name {name} is not ready: it is being loaded.")
            raise ModelNotFound(name)
        if version is not None and version != served.model.version:
            raise ModelNotFound(name, f"(version {version}; it has {served.model.version})")
        return served

    def is_model_ready(self, served: Served) -> bool:
        """Whether this model can answer in this worker, or in another one."""
        self.publish()
        return bool(served.model.ready) or self.board.model_ready(served.index)

    def is_ready(self) -> bool:
        """Whether the server as a whole is ready, whichever worker is asked (V2 ``/v2/health/ready``)."""
        self.publish()
        count = len(self.sources) if self.sources is not None else 0
        if self.settings.ready_when == "all":
            return self.board.all_ready(count)
        return self.board.any_ready() and all(self.board.model_ready(index) for index in range(count))

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run something slow that is no model's off the event loop."""
        return await self._offload.run(function, *args)

    def where(self) -> str:
        """The line that what is being loaded is at."""
        return self._loading_in.where() or self._offload.where()
