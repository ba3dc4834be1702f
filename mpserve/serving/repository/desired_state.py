"""What models are wanted, written down for all workers, and what each worker says has become of it.

Workers agree through state, not messages. A load or unload changes one small file, replaced whole under a lock, and
raises its generation. Each worker reconciles itself to the newest generation and then reports, so a worker that is
respawned later reads the same wish, and nothing can be missed (TensorFlow Serving's aspired versions are the same idea).
It knows nothing of models but their names, and those of the entries of the model directory that hold them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson

from mpserve.state import rundir
from mpserve.state.scoreboard import is_alive

WISH = "wanted.json"
AT_START = 0
"""The revision of a model as it was found at the start: the only one that a worker may have from before its fork."""


class ModelSpec(NamedTuple):
    """A model that is wanted.

    ``revision`` is another one whenever it is to be loaded anew. ``bit`` is its bit in the rows of the scoreboard, and stays
    its own as long as it is wanted. ``asker`` is the pid of the worker that asked for a trial and decides about it.
    ``entries`` are those of the model directory that hold its versions, as the asker found them, so that all workers have
    the same; none for what the server was started with.
    """

    revision: int
    bit: int
    asker: int = 0
    entries: tuple[str, ...] = ()


class DesiredState(NamedTuple):
    """The wanted models by name, as of a generation; 0 is before the first.

    A load begins as one of the ``candidates``: every worker loads it, beside what it serves, and none serves it yet. It is
    settled, or dropped, when all have said how it went. So a load changes all workers or none.
    """

    generation: int
    models: Mapping[str, ModelSpec]
    candidates: Mapping[str, ModelSpec] = {}

    def with_trial(self, name: str, asker: int, entries: Sequence[str] = ()) -> "DesiredState":
        """The wish once ``name`` is to be loaded, or loaded anew; a trial that is under way gives way to this one."""
        known = self.models.get(name) or self.candidates.get(name)
        taken = {spec.bit for spec in (*self.models.values(), *self.candidates.values())}
        bit = known.bit if known else next(bit for bit in range(len(taken) + 1) if bit not in taken)
        return self._replace(
            candidates={**self.candidates, name: ModelSpec(self.generation + 1, bit, asker, tuple(entries))}
        )

    def without_trial(self, name: str) -> "DesiredState":
        """The wish once the trial of ``name`` has failed."""
        return self._replace(
            candidates={other: candidate for other, candidate in self.candidates.items() if other != name}
        )

    def settled(self, name: str) -> "DesiredState":
        """The wish once the trial of ``name`` has succeeded."""
        return self.without_trial(name)._replace(models={**self.models, name: self.candidates[name]._replace(asker=0)})

    def without(self, name: str) -> "DesiredState":
        """The wish once ``name`` is to be unloaded."""
        models = {other: spec for other, spec in self.models.items() if other != name}
        return self.without_trial(name)._replace(models=models)


class ControlPlane:
    """The wish and the reports of one server, in a directory that its workers share.

    ``announce`` is told the generation of each change before the next can be made.
    """

    def __init__(self, directory: Path, announce: Callable[[int], object] = lambda generation: None) -> None:
        self.directory = directory
        self._announce = announce

    def read(self) -> DesiredState:
        """The newest wish."""
        try:
            generation, *parts = orjson.loads((self.directory / WISH).read_bytes())
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
        """The newest wish, for a worker that starts; the first to start makes ``names`` wanted.

        Trials whose asker has died are dropped, since nobody else would, and the newest generation is announced, in case
        who wrote it died before that.
        """
        with rundir.locked(self.directory):
            desired = self.read()
            orphans = [name for name, candidate in desired.candidates.items() if not is_alive(candidate.asker)]
            if desired.generation == 0:
                desired = desired._replace(models={name: ModelSpec(AT_START, bit) for bit, name in enumerate(names)})
            for name in orphans:
                desired = desired.without_trial(name)
            if orphans or desired.generation == 0:
                desired = self._write(desired)
            self._announce(desired.generation)
        return desired

    def change(self, to: Callable[[DesiredState], DesiredState]) -> DesiredState:
        """Replace the wish by what ``to`` makes of it, and give the new one. Changes of several workers follow one another."""
        with rundir.locked(self.directory):
            desired = self._write(to(self.read()))
            self._announce(desired.generation)
        return desired

    def report(self, slot: int, generation: int, failures: Mapping[str, str]) -> None:
        """Say that the worker in ``slot`` has done what it could for ``generation``; ``failures`` has the reasons by model."""
        rundir.replace(self.directory / f"slot-{slot}.json", orjson.dumps([generation, dict(failures)]))

    def failures(self, slot: int) -> dict[str, str]:
        """What the worker in ``slot`` last reported as failed, by model."""
        try:
            _, failures = orjson.loads((self.directory / f"slot-{slot}.json").read_bytes())
        except FileNotFoundError:
            return {}
        return dict(failures)

    def _write(self, desired: DesiredState) -> DesiredState:
        desired = desired._replace(generation=desired.generation + 1)
        parts = [{name: list(spec) for name, spec in part.items()} for part in (desired.models, desired.candidates)]
        rundir.replace(
            self.directory / WISH, orjson.dumps([desired.generation, *parts])
        )  # orjson takes no named tuples
        return desired
