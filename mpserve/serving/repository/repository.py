"""Load, unload and index (V2 model repository extension), asked of one worker and done by all when it answers.

Changes the desired state, and waits until every worker that is ready has followed. Workers that start later begin with the new
state; workers that are ending are not waited for. Knows no front end.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from mpserve.errors import (
    ModelLoadError,
    ModelNotFound,
    ModelNotReady,
    MPServeError,
    NotSupported,
    ServerNotReady,
    shown,
    there_are,
)
from mpserve.serving.repository import model_directory
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.desired_state import DesiredState, ModelSpec
from mpserve.state.scoreboard import FOLLOWING, MODELS, STARTING, State

TICK = 0.05
BEING_FINISHED = "its requests in flight are being finished"


class Entry(NamedTuple):
    """One version of a model in the index. ``state`` is READY, UNAVAILABLE, LOADING or UNLOADING; an unknown version is empty."""

    name: str
    version: str
    state: str
    reason: str


class Repository:
    """The models of one server, loaded or not."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self._loads: set[asyncio.Future[None]] = set()  # those under way: the event loop itself keeps no task alive

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load or reload a model with all its versions, in every worker or in none.

        The load goes on if the client goes away (gRPC cancels the call): otherwise nobody would commit or drop the candidate.

        Raises:
            ModelNotFound: there is no such model.
            NotSupported: the parameters would replace the model's configuration or files; or too many models are loaded.
            ModelLoadError: the load failed in some workers, which the message names with the reasons. Nothing has changed.
            ModelNotReady: another load or unload of the model came in between.
            ServerNotReady: the worker that was asked is ending.
        """
        loading = asyncio.ensure_future(self._load(name, parameters))
        self._loads.add(loading)
        loading.add_done_callback(self._loads.discard)
        await asyncio.shield(loading)

    async def _load(self, name: str, parameters: Mapping[str, Any]) -> None:
        _refuse_replacements(parameters)
        loadable = await self.core.offload(self._loadable)
        _check_known(name, loadable)
        entries = [place.entry for place in loadable[name]]
        desired = await self._change(lambda desired: _with_room(desired.with_candidate(name, os.getpid(), entries)))
        candidate = desired.candidates[name]
        try:
            reasons = await self._followed(desired.generation, self._ready_workers())
            reasons |= await self._failures(name)
            if reasons:
                raise ModelLoadError(
                    f"Model with name {name} was not loaded, and nothing has changed: {_by_slot(reasons)}"
                )
        except MPServeError:
            await self._drop(name, candidate)
            raise
        await self._settle(name, candidate)

    async def _drop(self, name: str, candidate: ModelSpec) -> None:
        """Drop a candidate; also when the worker is ending."""
        assert self.core.plane is not None
        await self.core.offload(
            self.core.plane.change,
            lambda desired: desired.without_candidate(name) if _is_current(candidate, name, desired) else desired,
        )

    async def _settle(self, name: str, candidate: ModelSpec) -> None:
        def settled(desired: DesiredState) -> DesiredState:
            if not _is_current(candidate, name, desired):
                raise ModelNotReady(name, "Another load or unload of it came in between.")
            return desired.committed(name)

        desired = await self._change(settled)
        reasons = await self._followed(desired.generation)
        reasons |= await self._failures(name)  # of workers that have started meanwhile
        if reasons:
            raise ModelLoadError(f"Model with name {name} is loaded, but not everywhere: {_by_slot(reasons)}")

    async def unload(self, name: str) -> None:
        """Unload a model with all its versions, in every worker, after its requests in flight.

        Raises:
            ModelNotFound: there is no such model.
            ModelLoadError: some workers, which the message names, did not finish in time.
            ServerNotReady: the worker that was asked is ending.
        """
        _check_known(name, self._names(await self.core.offload(self._loadable)))
        desired = await self._change(lambda desired: desired.without(name))
        reasons = await self._followed(desired.generation)
        if reasons:
            raise ModelLoadError(f"Model with name {name} was not unloaded everywhere: {_by_slot(reasons)}")

    async def index(self, ready_only: bool = False) -> list[Entry]:
        """All models that are loaded or can be loaded, or only the ready models; an entry for each version."""
        assert self.core.plane is not None
        desired = await self.core.offload(self.core.plane.read)
        loadable = await self.core.offload(self._loadable)
        names = self._names(loadable)
        entries = [entry for name in names for entry in self._lines(name, loadable.get(name, []), desired)]
        return [entry for entry in entries if entry.state == "READY" or not ready_only]

    def _lines(self, name: str, places: Iterable[model_directory.Place], desired: DesiredState) -> list[Entry]:
        """The versions that are served here, or else the versions in the model directory."""
        core = self.core
        group = core.models.get(name)
        if group is None:
            versions = [place.version for place in places] or [""]
            return [Entry(name, version, *self._state(name, desired)) for version in versions]
        if name not in desired.models:
            return [Entry(name, version, "UNLOADING", BEING_FINISHED) for version in group.versions]
        return [
            Entry(name, instance.model.version, *self._readiness(core.is_model_ready(instance))) for instance in group
        ]

    def _state(self, name: str, desired: DesiredState) -> tuple[str, str]:
        """The state of a model that is not served here, and the reason."""
        core = self.core
        if name in desired.models:
            return self._readiness(core.board.model_ready(desired.models[name].bit))
        if name in desired.candidates:
            return "LOADING", ""
        if any(old.model.name == name for old in core.reconciler.retiring):
            return "UNLOADING", BEING_FINISHED
        return "UNAVAILABLE", "it is not loaded"

    def _readiness(self, ready: bool) -> tuple[str, str]:
        if ready:
            return "READY", ""
        if any(row.state in STARTING for row in self.core.board.live()):
            return "LOADING", ""
        return "UNAVAILABLE", "it is not ready in any worker"

    def _names(self, loadable: Iterable[str]) -> list[str]:
        return list(dict.fromkeys([*self.core.names, *loadable]))

    def _loadable(self) -> dict[str, list[model_directory.Place]]:
        """The models that can be loaded, with the entries of their versions in the model directory.
        A model of the start without such an entry has none, and goes first.
        """
        known = self.core.known
        started: dict[str, list[model_directory.Place]] = {
            name: [] for name, found in known.items() if not found[0].shelved
        }
        renamed = {found[0].shelved: name for name, found in known.items()}  # by --model_name
        if self.core.library is not None:
            started |= {name: [] for name in self.core.library.names() if name not in started}
        lying = {renamed.get(name, name): places for name, places in model_directory.places(self.core.settings).items()}
        return started | {name: places for name, places in lying.items() if name not in started}

    async def _change(self, to: Callable[[DesiredState], DesiredState]) -> DesiredState:
        plane = self.core.plane
        if plane is None or self.core.row.state != State.READY:
            raise ServerNotReady("The worker that was asked is starting or ending; ask again.")
        try:
            return await self.core.offload(plane.change, to)
        except OSError as error:
            raise ModelLoadError(
                f"nothing has changed, since the change cannot be written: {error.strerror}"
            ) from error

    def _ready_workers(self) -> dict[int, int]:
        """The pids of the workers that will load a model, by slot."""
        return {row.slot: row.pid for row in self.core.board.live() if row.state in FOLLOWING}

    async def _followed(self, generation: int, loading: Mapping[int, int] | None = None) -> dict[int, str]:
        """Wait until all READY workers have followed the desired state; returns the reasons of the others, by slot.
        ``loading``: the workers whose death during the wait counts as a failure.
        """
        core = self.core
        watched = dict(loading or {})
        reasons: dict[int, str] = {}
        patience = core.settings.load_timeout + core.settings.graceful_timeout
        deadline = time.monotonic() + patience
        while True:
            core.reconciler.kick()
            if core.row.state != State.READY:
                raise ServerNotReady("The worker that was asked is ending; ask again.")
            for slot, pid in list(watched.items()):
                row = core.board.row(slot)
                if row.state in (State.DRAINING, State.EXITED):  # it ends as it should
                    del watched[slot]
                elif row.pid != pid or not row.is_live():
                    reasons[slot] = "its worker died meanwhile"
            ready = [row for row in core.board.live() if row.state in FOLLOWING]
            late = [row.slot for row in ready if row.generation < generation]
            if not late:
                return reasons
            if time.monotonic() > deadline:
                return reasons | dict.fromkeys(late, f"not done within {patience:g} s")
            await asyncio.sleep(TICK)

    async def _failures(self, name: str) -> dict[int, str]:
        """The reasons why the model failed in ready workers, by slot."""
        plane = self.core.plane
        assert plane is not None
        reports = {slot: await self.core.offload(plane.failures, slot) for slot in self._ready_workers()}
        return {slot: failures[name] for slot, failures in reports.items() if name in failures}


def _check_known(name: str, names: Collection[str]) -> None:
    if name not in names:
        raise ModelNotFound(name, there_are(names))


def _is_current(candidate: ModelSpec, name: str, desired: DesiredState) -> bool:
    return desired.candidates.get(name) == candidate


def _with_room(desired: DesiredState) -> DesiredState:
    if any(spec.bit >= MODELS for spec in desired.candidates.values()):
        raise NotSupported(f"{MODELS} models are loaded, which is as many as can be; unload one first")
    return desired


def _refuse_replacements(parameters: Mapping[str, Any]) -> None:
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise NotSupported(
                f"the parameter {shown(name)!r} is not supported: a model is loaded as it lies in the model directory, or as"
                " the server was started with it"
            )


def _by_slot(reasons: Mapping[int, str]) -> str:
    """The reasons, each with its slots."""
    slots: dict[str, list[str]] = {}
    for slot in sorted(reasons):
        slots.setdefault(reasons[slot], []).append(str(slot))
    return "; ".join(f"in slot {', '.join(slots[reason])}: {reason}" for reason in dict.fromkeys(reasons.values()))
