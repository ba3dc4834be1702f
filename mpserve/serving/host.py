"""The models that one worker holds, and the steps by which one is brought up.

The part of a server's core that is the same at the start and for a load later. It knows its row of the scoreboard and the
wish, and decides nothing: which models are brought up, and when, is the business of the core and of the reconciler.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mpserve import rundir
from mpserve.errors import ConfigurationError, ModelLoadError
from mpserve.logging import model as model_in_log
from mpserve.metrics import metrics
from mpserve.scoreboard import Row, Scoreboard
from mpserve.serving import shelf
from mpserve.serving.controlplane import AT_START, ControlPlane, Wanted, Wish
from mpserve.serving.executor import Executor
from mpserve.serving.loader import ModelSource
from mpserve.serving.model import Model
from mpserve.serving.served import Served
from mpserve.settings import Settings

logger = logging.getLogger(__name__)
T = TypeVar("T")


class ModelHost:
    """The models of one worker. ``settings`` are read, never changed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.board = Scoreboard(1)
        self.row = self.board.row(0)
        self.device = "cpu"
        self.plane: ControlPlane | None = None
        self.wish = Wish(0, {})
        """The newest wish that this worker has made true, as far as it could."""
        self.known: dict[str, ModelSource] = {}
        """The models that were found at the start, wanted or not, by name."""
        self.served: dict[str, Served] = {}
        self.loading = ""
        """What is being loaded right now, for the words of a deadline."""
        self._on_thread: Callable[[], object] = lambda: None
        self._offload = Executor("helper")
        self._loading_in = self._offload

    def take_place(self, board: Scoreboard, row: Row, directory: Path) -> None:
        """Take this row of the scoreboard, and follow the wish in this directory."""

        def announce(generation: int) -> None:
            board.generation = generation

        self.board, self.row = board, row
        self.plane = ControlPlane(directory, announce)

    async def bring_up(self, name: str, wanted: Wanted, helper: Executor) -> Served:
        """Construct, load, warm up and start a model, beside what is served; ``helper`` runs what is not yet the model's.

        An object that a script has made cannot be made again: if it is served, it is loaded anew in place.

        Raises:
            ModelLoadError: it failed; the message names the model and the reason.
            ConfigurationError: there is no such model any more, or it declares what cannot be.
        """
        with self.step("the construction of a model", helper):
            model = await helper.run(self._obtain, name, wanted.revision)
            served = self.served.get(name)
            if served is None or served.model is not model:
                served = Served(model, wanted, self._on_thread)
        was_ready = model.ready
        in_log = model_in_log.set(name)
        try:
            await self._load(served, again=wanted.revision != AT_START)
        except BaseException:
            model.ready = was_ready
            if served is not self.served.get(name):
                served.executor.close()
            raise
        finally:
            model_in_log.reset(in_log)
        return served

    async def _load(self, served: Served, again: bool) -> None:
        model = served.model
        model.device = self.device
        start = time.monotonic()
        if again or model.deferred is not None or not model.loaded:
            with self.step(f"load() of model {model.name}", served.executor):
                if await served.call(model.load) is False:
                    raise ModelLoadError(f"model {model.name}: load() returned False")
            model.loaded = True
        with self.step(f"warmup() of model {model.name}", served.executor):
            await served.call(model.warmup)
        with self.step(f"start() of model {model.name}", served.executor):
            await served.call(model.start)
            if model.engine:
                await model.start_engine()
        seconds = time.monotonic() - start
        metrics().load_seconds.labels(model.name).observe(seconds)
        model.ready = True
        logger.info("model %s loaded on %s in %.2f s", model.name, self.device, seconds)

    def _obtain(self, name: str, revision: int) -> Model:
        source = self.known.get(name)
        if source is None:
            source = shelf.find(self.settings, name)
        elif revision != AT_START:
            source = source.anew()
        model = source.obtain()
        if model.name != name:
            raise ModelLoadError(f"expected a model named {name}, got one that names itself {model.name}")
        return model

    @contextmanager
    def step(self, what: str, executor: Executor) -> Iterator[None]:
        """Name a step of a load, for the words of a deadline and of a failure."""
        self.loading, self._loading_in = what, executor
        try:
            yield
        except (ModelLoadError, ConfigurationError):
            raise
        except Exception as error:
            logger.exception("%s failed", what)
            raise ModelLoadError(f"{what} failed: {type(error).__name__}: {error}") from error

    def publish(self) -> None:
        """Write which models can answer here to the scoreboard; a model may have cleared its ``ready`` or set it."""
        self.row.models = sum(1 << served.wanted.bit for served in self.served.values() if served.model.ready)

    def forget(self, served: Served) -> None:
        """Keep nothing of a model that is served no more, if it can be made again."""
        source = self.known.get(served.model.name)
        if source is not None and source.model is served.model:
            source.forget()

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run something slow that is no model's off the event loop."""
        return await self._offload.run(function, *args)

    def where(self) -> str:
        """The line that what is being loaded is at."""
        return self._loading_in.where() or self._offload.where()


def own_directory() -> Path:
    """A directory for the wish of one server, removed when the process that made it ends."""
    return rundir.make("wanted")
