"""A worker's side of load and unload: follows the newest desired state, one state at a time, and reports failures.

A model is loaded beside the models that are served. The change itself is one moment on the event loop, so every request finds
a whole model, and the old model ends after its requests. Knows no other worker.
"""

import asyncio
import logging
from collections.abc import Iterable

from mpserve.serving.execution.executor import Executor
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.repository.desired_state import ControlPlane, DesiredState, ModelSpec
from mpserve.serving.repository.host import ModelHost, ModelVersions
from mpserve.state.scoreboard import FOLLOWING

logger = logging.getLogger(__name__)


class Reconciler:
    """Brings ``host`` to the newest desired state, whenever it is kicked and behind."""

    def __init__(self, host: ModelHost) -> None:
        self.host = host
        self.retiring: dict[ModelInstance, asyncio.Task[None]] = {}  # not served any more, and not stopped yet
        self._candidates: dict[str, tuple[int, ModelVersions]] = {}  # brought up here by revision, and not served yet
        self._failures: dict[str, tuple[int, str]] = {}  # by model: the revision that failed here, and the reason
        self._missed: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._helper = Executor("repository")

    def begin(self, plane: ControlPlane, desired: DesiredState) -> None:
        """Begin with ``desired``, whose models this worker has just loaded.
        Its candidates are left to the older workers: a candidate may have killed the last worker of this slot. This worker
        loads a candidate when it is committed.
        """
        self._missed = {candidate.revision for candidate in desired.candidates.values()}
        plane.report(self.host.row.slot, desired.generation, {})
        self.host.row.generation = desired.generation

    @property
    def is_behind(self) -> bool:
        """Whether there is a newer state than this worker has finished with."""
        return self.host.row.generation < self.host.board.generation

    def kick(self) -> None:
        """Begin to reconcile if necessary. To be called often; costs nothing otherwise."""
        if self.is_behind and self.host.row.state in FOLLOWING and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._reconcile())
            self._task.add_done_callback(_log_failure)

    async def _reconcile(self) -> None:
        plane = self.host.plane
        assert plane is not None
        desired = await self._helper.run(plane.read)
        spec = {**desired.models, **desired.candidates}
        self._failures = {
            name: failure
            for name, failure in self._failures.items()
            if name in spec and spec[name].revision == failure[0]
        }
        for name, candidate in desired.candidates.items():
            tried = name in self._failures or self._has_candidate(name, candidate)
            if not tried and candidate.revision not in self._missed:
                await self._try(name, candidate)
        for name, model in desired.models.items():
            group = self.host.models.get(name)
            if (group is None or group.spec.revision != model.revision) and not self._has_candidate(name, model):
                await self._try(name, model)
        await self._retire(self._change(desired))
        failures = {name: reason for name, (_, reason) in self._failures.items()}
        await self._helper.run(plane.report, self.host.row.slot, desired.generation, failures)
        self.host.row.generation = desired.generation

    def _has_candidate(self, name: str, spec: ModelSpec) -> bool:
        return name in self._candidates and self._candidates[name][0] == spec.revision

    async def _try(self, name: str, spec: ModelSpec) -> None:
        """Bring a model up as a candidate, or keep the reason of its failure."""
        host = self.host
        timeout = host.settings.load_timeout
        # A thread of its own: user code that hangs must not keep the next load, or the desired state, from being followed.
        constructor = Executor(f"load-{name}")
        loading = asyncio.ensure_future(host.bring_up(name, spec, constructor))
        try:
            await asyncio.wait({loading}, timeout=timeout)
            if loading.done():
                self._stand_by(name, loading.result(), spec)
                return
            reason = (
                f"{host.loading} did not finish within the {timeout:g} s of --load_timeout; it is at {host.where()}"
            )
        except Exception as error:  # whatever it is, the worker goes on with what it serves
            reason = str(error)
        finally:
            loading.cancel()
            constructor.close()
        logger.error("%s. What was served before is served on.", reason)
        self._failures[name] = spec.revision, reason

    def _stand_by(self, name: str, group: ModelVersions, spec: ModelSpec) -> None:
        self._failures.pop(name, None)
        _, replaced = self._candidates.get(name, (0, group))
        self._candidates[name] = spec.revision, group
        for instance in replaced:
            if instance not in group and instance not in self.host.models.get(name, ()):
                self._let_go(instance)

    def _change(self, desired: DesiredState) -> list[ModelInstance]:
        """Serve the desired state from this moment on; returns the models that are not served any more."""
        host = self.host
        ended = [
            instance for name in list(host.models) if name not in desired.models for instance in host.models.pop(name)
        ]
        for name, (revision, group) in list(self._candidates.items()):
            model, candidate = desired.models.get(name), desired.candidates.get(name)
            if model is not None and model.revision == revision:
                ended += host.models.get(name, ())
                group.spec = model
                host.models[name] = group
                del self._candidates[name]
            elif candidate is None or candidate.revision != revision:
                ended += group
                del self._candidates[name]
        host.desired = desired
        host.publish()
        serving = self._serving()  # an object that was loaded in place has ended and is served
        return [instance for instance in dict.fromkeys(ended) if instance not in serving]

    def _serving(self) -> set[ModelInstance]:
        return {instance for group in self.host.models.values() for instance in group}

    async def _retire(self, ended: Iterable[ModelInstance]) -> None:
        """Stop these models after their requests, and wait for at most ``graceful_timeout``."""
        tasks = [self._let_go(instance) for instance in ended]
        if tasks:
            await asyncio.wait(tasks, timeout=self.host.settings.graceful_timeout)

    def _let_go(self, instance: ModelInstance) -> "asyncio.Task[None]":
        self.host.forget(instance)
        task = self.retiring[instance] = asyncio.ensure_future(instance.retire())
        task.add_done_callback(lambda task: self.retiring.pop(instance, None))
        return task

    async def stop(self) -> None:
        """End the reconciler, and stop the models that are neither served nor stopped."""
        if self._task is not None:
            self._task.cancel()
        for instance in self.retiring:
            instance.abandon_requests()
        serving = self._serving()
        spare = [
            instance.stop() for _, group in self._candidates.values() for instance in group if instance not in serving
        ]
        await asyncio.gather(*self.retiring.values(), *spare)
        self._helper.close()


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the desired state could not be followed", exc_info=error)
