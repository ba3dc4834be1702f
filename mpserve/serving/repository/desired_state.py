"""The desired state: which models all workers are to serve, and each worker's report about it.

Workers agree through state, not messages. A load or unload replaces one small file under a lock, and raises its generation. Each
worker reconciles itself to the newest generation and then reports, so a worker that is respawned later misses nothing
(compare TensorFlow Serving's aspired versions). Knows the names of models and of entries of the model directory, no models.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import orjson

from mpserve.state import rundir
from mpserve.state.scoreboard import is_alive

STATE_FILE = "wanted.json"
AT_START = 0  # the revision of a model of the start: only this revision may come from before the fork


class ModelSpec(NamedTuple):
    """A model to serve.

    Attributes:
        revision: changes whenever the model is to be reloaded.
        bit: the bit of the model in the rows of the scoreboard, which stays its own as long as the model is served.
        asker: the pid of the worker that asked for a candidate, and commits or drops it.
        entries: the entries of the model directory with the model's versions, so that all workers load the same; empty for a
            model of the start.
    """

    revision: int
    bit: int
    asker: int = 0
    entries: tuple[str, ...] = ()


class DesiredState(NamedTuple):
    """The models to serve by name, in a generation; generation 0 is before the first.
    A load begins as a candidate, which every worker loads beside the models that it serves. The candidate is committed, or
    dropped, when all workers have reported. So a load changes all workers or none.
    """

    generation: int
    models: Mapping[str, ModelSpec]
    candidates: Mapping[str, ModelSpec] = {}

    def with_candidate(self, name: str, asker: int, entries: Sequence[str] = ()) -> "DesiredState":
        """The state with ``name`` as a candidate, which replaces an earlier candidate."""
        known = self.models.get(name) or self.candidates.get(name)
        taken = {spec.bit for spec in (*self.models.values(), *self.candidates.values())}
        bit = known.bit if known else next(bit for bit in range(len(taken) + 1) if bit not in taken)
        spec = ModelSpec(self.generation + 1, bit, asker, tuple(entries))
        return self._replace(candidates={**self.candidates, name: spec})

    def without_candidate(self, name: str) -> "DesiredState":
        """The state after the candidate ``name`` was dropped."""
        return self._replace(candidates={other: spec for other, spec in self.candidates.items() if other != name})

    def committed(self, name: str) -> "DesiredState":
        """The state after the candidate ``name`` was committed."""
        spec = self.candidates[name]._replace(asker=0)
        return self.without_candidate(name)._replace(models={**self.models, name: spec})

    def without(self, name: str) -> "DesiredState":
        """The state after ``name`` was unloaded."""
        models = {other: spec for other, spec in self.models.items() if other != name}
        return self.without_candidate(name)._replace(models=models)


class ControlPlane:
    """The desired state and the reports of one server, in a directory that its workers share.
    ``announce`` gets the generation of each change before the next change can be made.
    """

    def __init__(self, directory: Path, announce: Callable[[int], object] = lambda generation: None) -> None:
        self.directory = directory
        self._announce = announce

    def read(self) -> DesiredState:
        """The newest state."""
        try:
            generation, *parts = orjson.loads((self.directory / STATE_FILE).read_bytes())
        except FileNotFoundError:
            return DesiredState(0, {})
        models, candidates = (
            {
                name: ModelSpec(revision, bit, asker, tuple(entries))
                for name, (revision, bit, asker, entries) in part.items()
            }
            for part in parts
        )
        return DesiredState(generation, models, candidates)

    def begin(self, names: Sequence[str]) -> DesiredState:
        """The newest state, for a worker that starts. The first worker makes ``names`` the models to serve.
        Drops candidates whose asker has died, and announces the newest generation, in case its writer died before that.
        """
        with rundir.locked(self.directory):
            desired = self.read()
            orphans = [name for name, candidate in desired.candidates.items() if not is_alive(candidate.asker)]
            if desired.generation == 0:
                desired = desired._replace(models={name: ModelSpec(AT_START, bit) for bit, name in enumerate(names)})
            for name in orphans:
                desired = desired.without_candidate(name)
            if desired.generation == 0:
                desired = self._write(desired)
            elif orphans:
                with suppress(
                    OSError
                ):  # no room. A worker that starts ignores candidates, and must start nevertheless.
                    desired = self._write(desired)
            self._announce(desired.generation)
        return desired

    def change(self, to: Callable[[DesiredState], DesiredState]) -> DesiredState:
        """Replace the state by ``to(state)``, and return the new state. Changes of several workers follow one another."""
        with rundir.locked(self.directory):
            desired = self._write(to(self.read()))
            self._announce(desired.generation)
        return desired

    def report(self, slot: int, generation: int, failures: Mapping[str, str]) -> None:
        """Report that the worker in ``slot`` has finished with ``generation``; ``failures`` has the reasons by model.
        Without failures there is no file, so a worker can start even if there is no room for a file.
        """
        file = self.directory / f"slot-{slot}.json"
        if failures:
            rundir.replace(file, orjson.dumps([generation, dict(failures)]))
        else:
            file.unlink(missing_ok=True)

    def failures(self, slot: int) -> dict[str, str]:
        """The failures in the last report of ``slot``, by model."""
        try:
            _, failures = orjson.loads((self.directory / f"slot-{slot}.json").read_bytes())
        except FileNotFoundError:
            return {}
        return dict(failures)

    def _write(self, desired: DesiredState) -> DesiredState:
        desired = desired._replace(generation=desired.generation + 1)
        parts = [{name: list(spec) for name, spec in part.items()} for part in (desired.models, desired.candidates)]
        content = orjson.dumps([desired.generation, *parts])  # orjson takes no named tuples
        rundir.replace(self.directory / STATE_FILE, content)
        return desired
