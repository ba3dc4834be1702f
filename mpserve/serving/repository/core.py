"""One server's models put together: preload in the arbiter, load, serve and stop in a worker.

Every front end looks things up here and nowhere else, and holds no state of its own. It knows its row of the scoreboard
and no process: who forks, and when, is the business of the floors above.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mpserve.config.settings import Settings
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelNotFound, ModelNotReady, ServerNotReady
from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.model_instance import ModelInstance, call
from mpserve.serving.models.model import Spec
from mpserve.serving.models.predictor import Predictor
from mpserve.serving.models.versions import refuse_twins
from mpserve.serving.repository.host import ModelHost, own_directory
from mpserve.serving.repository.loader import ModelSource
from mpserve.serving.repository.reconciler import Reconciler
from mpserve.state import rundir
from mpserve.state.scoreboard import MODELS, Row, Scoreboard, State
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)


class ServerCore(ModelHost):
    """The models of one server, in this process.

    Args:
        settings: the options; read, never changed.
        find: gives the sources of the models that are wanted at the start. Called in the arbiter, and again in a worker
            if it reached for CUDA there.
        predictor: whom a transformer asks; started here, in the worker.
    """

    def __init__(
        self, settings: Settings, find: Callable[[], Sequence[ModelSource]], predictor: Predictor | None = None
    ) -> None:
        super().__init__(settings, predictor)
        self._find = find
        self.sources: Sequence[ModelSource] | None = None
        self.managed = False
        """Whether a worker of ours loads and stops the models; else the ASGI lifespan does."""
        self.reconciler = Reconciler(self)
        self._own_directory: Path | None = None

    def preload(self) -> None:
        """Find, construct and preload the models, in the arbiter.

        Raises:
            ModelLoadError: a model could not be constructed or preloaded.
        """
        try:
            self.sources = self._find()
        except AcceleratorInArbiter as reached:
            logger.warning("the model's code reached for CUDA in the arbiter and was stopped: %s. %s",
                           reached.where, "It will be imported and loaded in each worker instead.")  # fmt: skip
            return
        for source in self.sources:
            source.preload()

    @property
    def helper(self) -> Executor:
        """Runs what is slow and no model's, off the event loop."""
        return self._offload

    @property
    def names(self) -> list[str]:
        """The names of all wanted models, in their order, loaded or not."""
        if self.desired.generation:
            return list(self.desired.models)
        found = (source.model for source in self.sources or ())
        return list(dict.fromkeys(model.name for model in found if model is not None))

    def attach(
        self, board: Scoreboard, row: Row, device: str, on_thread: Callable[[], object], directory: Path
    ) -> None:
        """Serve under a worker of ours: its row of the shared scoreboard, its device, what model threads begin with.

        ``directory`` holds the wish that it shares with the server's other workers.
        """
        self.take_place(board, row, directory)
        self.device, self.managed = device, True
        self._on_thread = on_thread

    def begin_alone(self) -> None:
        """Serve under a worker that is not ours, with a scoreboard and a wish of its own.

        They are made now, in the worker: those made before a fork would be shared by workers that all take themselves
        for their only one.
        """
        board = Scoreboard(1)
        self._own_directory = own_directory()
        self.take_place(board, board.row(0), self._own_directory)
        self.row.state = State.LOADING

    async def load(self) -> None:
        """Load and warm up every wanted model in this process.

        Raises:
            ModelLoadError: a model failed; the message names it and the reason.
            ConfigurationError: the models cannot be served together.
        """
        if self.plane is None:
            self.begin_alone()
        assert self.plane is not None
        if self.predictor is not None:
            self.predictor.start(lambda: self.models)
        self.desired = (
            self.plane.read()
        )  # for who asks meanwhile; what is loaded is read when it is known what is there
        desired = await self.offload(self.plane.begin, await self._found())
        self.desired = desired
        for name, spec in desired.models.items():
            self.models[name] = await self.bring_up(name, spec, self._offload)
        for name, sources in self.known.items():
            if name not in desired.models:
                for source in sources:
                    source.forget()
        self.reconciler.begin(self.plane, desired)

    async def _found(self) -> list[str]:
        """The names of the models that were found at the start, each constructed."""
        if self.sources is None:
            with self.step("the import of the model's code", self._offload):
                self.sources = await self.offload(self._find)
        self.known = {}
        for source in self.sources:
            with self.step("the construction of a model", self._offload):
                model = await self.offload(source.obtain)
            self.known.setdefault(model.name, []).append(source)
        refuse_twins(source.model for source in self.sources if source.model is not None)
        if len(self.known) > MODELS:
            raise ConfigurationError(f"there are {len(self.known)} models, expected {MODELS} at most")
        return list(self.known)

    def open(self) -> None:
        """Tell all workers that this one can answer from now on."""
        self.publish()
        self.row.state = State.READY
        self.row.attempts = 0
        self.board.mark_ever_ready()

    async def describe(self, instance: ModelInstance) -> tuple[list[Spec], list[Spec]]:
        """A model's inputs and outputs. Not asked for in the model's own threads, where it would wait for predicts."""
        model = instance.model
        return await call(model.get_input_types, self._offload), await call(model.get_output_types, self._offload)

    async def stop(self) -> None:
        """Run every model's ``stop``, that of each version, each in its own thread, all at once. A failing one is logged."""
        instance = [instance for group in self.models.values() for instance in group]
        await asyncio.gather(self.reconciler.stop(), *(version.stop() for version in instance))
        if self.predictor is not None:
            await self.predictor.close()
        self._offload.close()
        metrics().flush()  # for the successor in this slot, and for who scrapes the other workers
        if self._own_directory is not None:
            rundir.remove(self._own_directory)

    def find(self, name: str, version: str | None = None) -> ModelInstance:
        """The model that a request names, in this version; in its newest one if none is named.

        Raises:
            ModelNotFound: no such model, or not this version of it.
            ServerNotReady: it is still being loaded here.
            ModelNotReady: it is wanted, and could not be loaded here.
        """
        group = self.models.get(name)
        if group is None:
            if self.row.state == State.LOADING and (not self.names or name in self.names):
                raise ServerNotReady(f"Model with name {name} is not ready: it is being loaded.")
            if name in self.names:
                raise ModelNotReady(name, "It could not be loaded in the worker that was asked.")
            raise ModelNotFound(name)
        if version is None:
            return group.newest
        instance = group.find(version)
        if instance is None:
            raise ModelNotFound(f"{name}@{version}", f"There are: {', '.join(f'{name}@{v}' for v in group.versions)}.")
        return instance

    def versions(self, name: str) -> list[str]:
        """All versions of a model that is served, from the oldest to the newest."""
        return self.models[name].versions

    def is_model_ready(self, instance: ModelInstance) -> bool:
        """Whether this version can answer in this worker, or in another one, which tells that only of all versions."""
        self.publish()
        return self.can_answer(instance) or self.board.model_ready(self.models[instance.model.name].spec.bit)

    def is_ready(self) -> bool:
        """Whether the server as a whole is ready, whichever worker is asked (V2 ``/v2/health/ready``)."""
        self.publish()
        bits = [spec.bit for spec in self.desired.models.values()]
        if self.settings.ready_when == "all":
            return self.board.all_ready(sum(1 << bit for bit in bits))
        return self.board.any_ready() and all(map(self.board.model_ready, bits))
