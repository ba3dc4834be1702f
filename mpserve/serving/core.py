"""One server's models put together: preload in the master, load, serve and stop in a worker.

Every front end looks things up here and nowhere else, and holds no state of its own. It knows its row of the scoreboard and no
process: who forks, and when, is the business of the floors above.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mpserve.errors import AcceleratorInMaster, ConfigurationError, ModelLoadError, ModelNotFound, ServerNotReady
from mpserve.logging import model as model_in_log
from mpserve.metrics import metrics
from mpserve.scoreboard import Row, Scoreboard, State
from mpserve.serving.executor import Executor
from mpserve.serving.loader import ModelSource
from mpserve.serving.model import Model
from mpserve.serving.pipeline import Pipeline
from mpserve.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Served:
    """A model in a worker: its threads, its pipeline, its place in the wanted set."""

    def __init__(self, model: Model, index: int, on_thread: Callable[[], object]) -> None:
        self.model = model
        self.index = index
        self.executor = Executor(model.name, model.concurrency or 1, on_thread)
        self.pipeline = Pipeline(model, self.executor, metrics().stage_observers(model.name))

    async def call(self, method: Callable[[], Any]) -> Any:
        """A method of the model: in its thread if it is synchronous, on the loop if it is not."""
        if inspect.iscoroutinefunction(method):
            return await method()
        result = await self.executor.run(method)
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
        """Serve under a worker of ours: its row of the shared scoreboard, its device, what each model thread begins with."""
        self.board, self.row, self.device, self.managed = board, row, device, True
        self._on_thread = on_thread

    async def load(self) -> None:
        """Load and warm up every wanted model in this process.

        Raises:
            ModelLoadError: a model failed; the message names it and the reason.
        """
        if self.sources is None:
            self.loading = "the import of the model's code"
            self.sources = await self.offload(self._find)
        for index, source in enumerate(self.sources):
            await self._load(source, index)
        if len(self.served) < len(self.sources):
            raise ConfigurationError(f"two models have one name: {', '.join(self.names)}")

    async def _load(self, source: ModelSource, index: int) -> None:
        self.loading, self._loading_in = "the construction of a model", self._offload
        model = await self.offload(source.obtain)
        served = Served(model, index, self._on_thread)
        model_in_log.set(model.name)
        model.device = self.device
        start = time.monotonic()
        try:
            self._loading_in = served.executor
            if model.deferred is not None or not model.loaded:
                self.loading = f"load() of model {model.name}"
                if await served.call(model.load) is False:
                    raise ModelLoadError(f"model {model.name}: load() returned False")
                model.loaded = True
            self.loading = f"warmup() of model {model.name}"
            await served.call(model.warmup)
            self.loading = f"start() of model {model.name}"
            await served.call(model.start)
            if model.engine:
                await model.start_engine()
        except ModelLoadError:
            raise
        except Exception as error:
            logger.exception("%s failed", self.loading)
            raise ModelLoadError(f"{self.loading} failed: {type(error).__name__}: {error}") from error
        seconds = time.monotonic() - start
        metrics().load_seconds.labels(model.name).observe(seconds)
        model.ready = True
        self.served[model.name] = served
        logger.info("model %s loaded on %s in %.2f s", model.name, self.device, seconds)
        model_in_log.set("-")

    def open(self) -> None:
        """Tell all workers that this one can answer from now on."""
        self.publish()
        self.row.state = State.READY
        self.row.attempts = 0
        self.board.mark_ever_ready()

    def publish(self) -> None:
        """Write which models can answer here to the scoreboard; a model may have cleared its ``ready``."""
        self.row.models = sum(1 << served.index for served in self.served.values() if served.model.ready)

    async def stop(self) -> None:
        """Run every model's ``stop``, each in its own thread, all at once. A failing one is logged."""
        await asyncio.gather(*(self._stop(served) for served in self.served.values()))

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
        return served.model.ready or self.board.model_ready(served.index)

    def is_ready(self) -> bool:
        """Whether the server as a whole is ready, whichever worker is asked (V2 ``/v2/health/ready``)."""
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
