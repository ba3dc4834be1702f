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


class Wanted(NamedTuple):
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


class Wish(NamedTuple):
    """The wanted models by name, as of a generation; 0 is before the first.

    A load begins as one of the ``trials``: every worker loads it, beside what it serves, and none serves it yet. It is
    settled, or dropped, when all have said how it went. So a load changes all workers or none.
    """

    generation: int
    models: Mapping[str, Wanted]
    trials: Mapping[str, Wanted] = {}

    def with_trial(self, name: str, asker: int, entries: Sequence[str] = ()) -> "Wish":
        """The wish once ``name`` is to be loaded, or loaded anew; a trial that is under way gives way to this one."""
        known = self.models.get(name) or self.trials.get(name)
        taken = {wanted.bit for wanted in (*self.models.values(), *self.trials.values())}
        bit = known.bit if known else next(bit for bit in range(len(taken) + 1) if bit not in taken)
        return self._replace(trials={**self.trials, name: Wanted(self.generation + 1, bit, asker, tuple(entries))})

    def without_trial(self, name: str) -> "Wish":
        """The wish once the trial of ``name`` has failed."""
        return self._replace(trials={other: trial for other, trial in self.trials.items() if other != name})

    def settled(self, name: str) -> "Wish":
        """The wish once the trial of ``name`` has succeeded."""
        return self.without_trial(name)._replace(models={**self.models, name: self.trials[name]._replace(asker=0)})

    def without(self, name: str) -> "Wish":
        """The wish once ``name`` is to be unloaded."""
        models = {other: wanted for other, wanted in self.models.items() if other != name}
        return self.without_trial(name)._replace(models=models)


class ControlPlane:
    """The wish and the reports of one server, in a directory that its workers share.

    ``announce`` is told the generation of each change before the next can be made.
    """

    def __init__(self, directory: Path, announce: Callable[[int], object] = lambda generation: None) -> None:
        self.directory = directory
        self._announce = announce

    def read(self) -> Wish:
        """The newest wish."""
        try:
            generation, *parts = orjson.loads((self.directory / WISH).read_bytes())
        except FileNotFoundError:
            return Wish(0, {})
        models, trials = (
            {
                name: Wanted(revision, bit, asker, tuple(entries))
                for name, (revision, bit, asker, entries) in part.items()
            }
            for part in parts
        )
        return Wish(generation, models, trials)

    def begin(self, names: Sequence[str]) -> Wish:
        """The newest wish, for a worker that starts; the first to start makes ``names`` wanted.

        Trials whose asker has died are dropped, since nobody else would, and the newest generation is announced, in case
        who wrote it died before that.
        """
        with rundir.locked(self.directory):
            wish = self.read()
            orphans = [name for name, trial in wish.trials.items() if not is_alive(trial.asker)]
            if wish.generation == 0:
                wish = wish._replace(models={name: Wanted(AT_START, bit) for bit, name in enumerate(names)})
            for name in orphans:
                wish = wish.without_trial(name)
            if orphans or wish.generation == 0:
                wish = self._write(wish)
            self._announce(wish.generation)
        return wish

    def change(self, to: Callable[[Wish], Wish]) -> Wish:
        """Replace the wish by what ``to`` makes of it, and give the new one. Changes of several workers follow one another."""
        with rundir.locked(self.directory):
            wish = self._write(to(self.read()))
            self._announce(wish.generation)
        return wish

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

    def _write(self, wish: Wish) -> Wish:
        wish = wish._replace(generation=wish.generation + 1)
        parts = [{name: list(wanted) for name, wanted in part.items()} for part in (wish.models, wish.trials)]
        rundir.replace(self.directory / WISH, orjson.dumps([wish.generation, *parts]))  # orjson takes no named tuples
        return wish
