"""What models are wanted, written down for all workers, and what each worker says has become of it.

Workers agree through state, not messages. A load or unload changes one small file, replaced whole under a lock, and
raises its generation. Each worker reconciles itself to the newest generation and then reports, so a worker that is
respawned later reads the same wish, and nothing can be missed (TensorFlow Serving's aspired versions are the same idea).
It knows nothing of models but their names.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import orjson

WISH = "wanted.json"


class Wanted(NamedTuple):
    """A model that is wanted.

    ``revision`` grows when it is to be loaded anew. ``bit`` is its bit in the rows of the scoreboard, and stays its own as
    long as it is wanted.
    """

    revision: int
    bit: int


class Wish(NamedTuple):
    """The wanted models by name, as of a generation; 0 is before the first."""

    generation: int
    models: Mapping[str, Wanted]

    def with_loaded(self, name: str) -> dict[str, Wanted]:
        """The wanted models once ``name`` is to be loaded, or loaded anew."""
        known = self.models.get(name)
        if known is not None:
            return {**self.models, name: Wanted(known.revision + 1, known.bit)}
        taken = {wanted.bit for wanted in self.models.values()}
        bit = next(bit for bit in range(len(taken) + 1) if bit not in taken)
        return {**self.models, name: Wanted(self.generation + 1, bit)}

    def without(self, name: str) -> dict[str, Wanted]:
        """The wanted models once ``name`` is to be unloaded."""
        return {other: wanted for other, wanted in self.models.items() if other != name}


class ControlPlane:
    """The wish and the reports of one server, in a directory that its workers share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self) -> Wish:
        """The newest wish."""
        try:
            generation, models = orjson.loads((self.directory / WISH).read_bytes())
        except FileNotFoundError:
            return Wish(0, {})
        return Wish(generation, {name: Wanted(*wanted) for name, wanted in models.items()})

    def change(self, to: Callable[[Wish], Mapping[str, Wanted]]) -> Wish:
        """Replace the wish by what ``to`` makes of it, and give the new one. Changes of several workers follow one another."""
        with self._lock():
            wish = self.read()
            wish = Wish(wish.generation + 1, to(wish))
            models = {name: list(wanted) for name, wanted in wish.models.items()}  # orjson takes no named tuples
            self._replace(WISH, [wish.generation, models])
        return wish

    def report(self, slot: int, generation: int, failures: Mapping[str, str]) -> None:
        """Say that the worker in ``slot`` has done what it could for ``generation``; ``failures`` has the reasons by model."""
        self._replace(f"slot-{slot}.json", [generation, dict(failures)])

    def failures(self, slot: int) -> dict[str, str]:
        """What the worker in ``slot`` last reported as failed, by model."""
        try:
            _, failures = orjson.loads((self.directory / f"slot-{slot}.json").read_bytes())
        except FileNotFoundError:
            return {}
        return dict(failures)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The kernel drops the lock of a worker that is killed while it holds it.
        descriptor = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _replace(self, name: str, content: object) -> None:
        """Write so that a reader sees the old file or the new one, never half of one."""
        fresh = self.directory / f"{name}.{os.getpid()}"
        fresh.write_bytes(orjson.dumps(content))
        fresh.replace(self.directory / name)
