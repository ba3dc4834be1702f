"""The models of one server: preloaded in the arbiter; loaded, served and stopped in a worker.

Every front end looks models up here, and holds no state of its own. This module knows its row of the scoreboard and no process.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import (
    AcceleratorFailed,
    AcceleratorInArbiter,
    AcceleratorOutOfMemory,
    ConfigurationError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotReady,
    shown,
    there_are,
)
from mpserve.serving.authentication.authenticator import Authenticator
from mpserve.serving.execution.model_instance import ModelInstance, call
from mpserve.serving.models.accelerator import free_memory
from mpserve.serving.models.model import Spec
from mpserve.serving.models.predictor import Predictor
from mpserve.serving.models.versions import refuse_twins
from mpserve.serving.repository.host import ModelHost, own_directory
from mpserve.serving.repository.import_target import find_function
from mpserve.serving.repository.loader import ModelSource
from mpserve.serving.repository.random_state import reseed
from mpserve.serving.repository.reconciler import Reconciler
from mpserve.state import rundir
from mpserve.state.scoreboard import MODELS, Row, Scoreboard, State
from mpserve.telemetry import tracing
from mpserve.telemetry.metrics import metrics

logger = logging.getLogger(__name__)


class ServerCore(ModelHost):
    """The models of one server, in this process.

    Args:
        settings: the options; read, never changed.
        find: returns the sources of the models to serve at the start. Called in the arbiter, and again in a worker if it reached
            for CUDA in the arbiter.
        predictor: the predictor of transformers; started in the worker.
    """

    def __init__(
        self, settings: Settings, find: Callable[[], Sequence[ModelSource]], predictor: Predictor | None = None
    ) -> None:
        super().__init__(settings, predictor)
        self._find = find
        self.authenticator = _authenticator(settings)
        self.sources: Sequence[ModelSource] | None = None
        self.accelerator_lost = False  # whether only a new process can use the accelerator
        self.on_accelerator_lost: Callable[[], object] = lambda: logger.error(
            "only a new process can use the accelerator again: restart this one"
        )
        self.observer: Callable[..., Any] | None = None  # makes the objects of requests, if somebody observes them
        self.finish_observing: Callable[[], Awaitable[None]] | None = None
        self.managed = False  # whether a worker of ours loads and stops the models; else the ASGI lifespan does
        self.reconciler = Reconciler(self)
        self._own_directory: Path | None = None
        self._preloaded: list[object] = []  # kept for ever in a forked worker
        self._arbiter = 0
        self._freeing: set[asyncio.Future[None]] = set()  # keeps the tasks until they end

    def preload(self) -> None:
        """Find, construct and preload the models, in the arbiter. Raises ModelLoadError if a model fails."""
        tracing.prepare()
        if not self.settings.preload:
            return
        logger.info("loading %s", self.settings.target or self.settings.model_dir or "the models")
        try:
            self.sources = self._find()
        except AcceleratorInArbiter as reached:
            logger.warning("the model's code reached for CUDA in the arbiter and was stopped: %s. %s",
                           reached.where, "It will be imported and loaded in each worker instead.")  # fmt: skip
            return
        for source in self.sources:
            source.preload()
        self._keep()

    def _keep(self) -> None:
        """Let no worker destroy what was preloaded: a destructor may wait for threads that the worker does not have.

        The memory is the arbiter's, so a worker gains none. The models are not kept: they will hold what ``load`` makes.
        """
        models = (source.model for source in self.sources or ())
        self._preloaded = [*sys.modules.values(), *(dict(vars(model)) for model in models if model is not None)]
        self._arbiter = os.getpid()

    @property
    def names(self) -> list[str]:
        """The names of all models to serve, in their order, loaded or not."""
        if self.desired.generation:
            return list(self.desired.models)
        found = (source.model for source in self.sources or ())
        return list(dict.fromkeys(model.name for model in found if model is not None))

    def attach(
        self,
        board: Scoreboard,
        row: Row,
        device: str,
        on_thread: Callable[[], object],
        directory: Path,
        native_threads: int = 0,
    ) -> None:
        """Serve in an mpserve worker, with its row of the shared scoreboard and its device.
        ``on_thread`` runs first in each model thread. ``directory`` holds the desired state that the workers share.
        ``native_threads`` is how many threads a library may use here.
        """
        self.take_place(board, row, directory)
        self.device, self.managed, self.native_threads = device, True, native_threads
        self._on_thread = on_thread
        if self.authenticator is not None:
            # Now, since clients may come during the load, and again in the load, which tells what is wrong.
            with suppress(ConfigurationError):
                self.authenticator.begin()

    def begin_alone(self) -> None:
        """Serve in a worker that is not mpserve's, with a scoreboard and a desired state of its own.
        They are made in the worker: several workers would share those that are made before a fork.
        """
        board = Scoreboard(1)
        self._own_directory = own_directory()
        self.take_place(board, board.row(0), self._own_directory)
        self.row.state = State.LOADING

    async def load(self) -> None:
        """Load and warm up every model to serve, in this process.
        Raises ModelLoadError: a model failed; the message names the model and the reason; ConfigurationError if the models
        cannot be served together, or the file of keys cannot be used.
        """
        if self._arbiter == os.getpid():  # nothing was forked
            self._preloaded.clear()
        if self.plane is None:
            self.begin_alone()
        assert self.plane is not None
        if self.authenticator is not None:
            self.authenticator.begin()
        if self.predictor is not None:
            self.predictor.start(lambda: self.models)
        self.desired = self.plane.read()  # for requests during the load
        found = await self._found()
        if self.settings.reseed:
            await self.offload(
                reseed
            )  # after all imports, so that only a seed that a load() sets holds in every worker
        desired = await self.offload(self.plane.begin, found)
        self.desired = desired
        for name, spec in desired.models.items():
            self.models[name] = await self.bring_up(name, spec, self.helper)
        for name, sources in self.known.items():
            if name not in desired.models:
                for source in sources:
                    source.forget()
        self.reconciler.begin(self.plane, desired)

    async def _found(self) -> list[str]:
        """Construct the models of the start, and return their names."""
        if self.sources is None:
            with self.step("the import of the model's code", self.helper):
                self.sources = await self.offload(self._find)
        self.known = {}
        for source in self.sources:
            with self.step("the construction of a model", self.helper):
                model = await self.offload(source.obtain)
            self.known.setdefault(model.name, []).append(source)
        refuse_twins(source.model for source in self.sources if source.model is not None)
        if len(self.known) > MODELS:
            raise ConfigurationError(f"there are {len(self.known)} models, expected {MODELS} at most")
        return list(self.known)

    def publish_queues(self) -> None:
        """Tell all workers how many requests are in flight and wait in this worker. To be called often."""
        instances = [instance for group in self.models.values() for instance in group]
        self.row.waiting = sum(instance.admission.waiting for instance in instances)
        for instance in instances:
            if instance.counters is not None:
                instance.counters.publish(instance.in_flight.count, instance.admission.waiting)

    def follow(self) -> None:
        """Follow the changes of models from now on."""
        self.row.state = State.OPENING

    def open(self) -> None:
        """Tell all workers that this worker is ready: clients can reach it."""
        self.publish()
        self.row.state = State.READY
        self.board.mark_ever_ready()

    def note_accelerator(self, instance: ModelInstance, fault: AcceleratorFailed, answered: int) -> None:
        """Free the memory of a request for which the accelerator had too little. If only a new worker can go on, tell all
        workers at once that the model does not answer here, and have this worker replaced. ``answered``: as for the instance.
        """
        if isinstance(fault, AcceleratorOutOfMemory):
            # In the helper's thread, since frameworks wait for the device meanwhile.
            freeing = asyncio.ensure_future(self.helper.run(free_memory, fault))
            self._freeing.add(freeing)
            freeing.add_done_callback(self._freeing.discard)
        if instance.note_accelerator(fault, answered) and not self.accelerator_lost:
            self.accelerator_lost = True
            self.publish()
            self.on_accelerator_lost()

    async def describe(self, instance: ModelInstance) -> tuple[list[Spec], list[Spec]]:
        """The inputs and outputs of a model. A thread of its own asks the model, whose threads may be busy."""
        model = instance.model
        return await call(model.get_input_types, self.asker), await call(model.get_output_types, self.asker)

    async def stop(self) -> None:
        """Run the ``stop`` of every version of every model, each in its own thread. A failure is logged."""
        instance = [instance for group in self.models.values() for instance in group]
        await asyncio.gather(self.reconciler.stop(), *(version.stop() for version in instance))
        if self.predictor is not None:
            await self.predictor.close()
        if self.finish_observing is not None:
            await self.finish_observing()
        self.helper.close()
        self.asker.close()
        metrics().flush()  # for the next worker in this slot, and for a scrape of the other workers
        if self._own_directory is not None:
            rundir.remove(self._own_directory)

    def find(self, name: str, version: str | None = None) -> ModelInstance:
        """The model of this name and version, or its newest version.

        Raises:
            ModelNotFound: there is no such model, or no such version.
            ServerNotReady: the model is being loaded here.
            ModelNotReady: the model could not be loaded here.
        """
        group = self.models.get(name)
        if group is None:
            if self.row.state == State.LOADING and (not self.names or name in self.names):
                raise ServerNotReady(f"Model with name {shown(name)} is not ready: it is being loaded.")
            if name in self.names:
                raise ModelNotReady(name, "It could not be loaded in the worker that was asked.")
            raise ModelNotFound(name, there_are(self.names))
        if version is None:
            return group.newest
        instance = group.find(version)
        if instance is None:
            raise ModelNotFound(f"{name}@{version}", there_are([f"{name}@{v}" for v in group.versions]))
        return instance

    def only_name(self) -> str:
        """The name of the only model, for a request that names none.
        Raises ServerNotReady if the models are not known yet; InvalidInput if there are several.
        """
        names = self.names
        if len(names) == 1:
            return names[0]
        if not names and self.row.state == State.LOADING:
            raise ServerNotReady("The server is not ready: its models are being loaded.")
        raise InvalidInput(
            f"the request names no model, which is enough for a server of one model; the models are: {', '.join(names) or 'none'}"
        )

    def versions(self, name: str) -> list[str]:
        """All versions of a served model, from the oldest to the newest."""
        return self.models[name].versions

    def is_model_ready(self, instance: ModelInstance) -> bool:
        """Whether this version can answer in this worker, or all versions can in another worker."""
        self.publish()
        return self.can_answer(instance) or self.board.model_ready(self.models[instance.model.name].spec.bit)

    def is_ready(self) -> bool:
        """Whether the server as a whole is ready, whichever worker is asked (V2 ``/v2/health/ready``)."""
        self.publish()
        bits = [spec.bit for spec in self.desired.models.values()]
        if self.settings.ready_when == "all":
            return self.board.all_ready(sum(1 << bit for bit in bits))
        return self.board.any_ready() and all(map(self.board.model_ready, bits))


def _authenticator(settings: Settings) -> Authenticator | None:
    """None: the server answers everybody."""
    if not settings.knows_callers:
        return None
    return Authenticator(settings, None if settings.authenticate is None else find_function(settings.authenticate))
