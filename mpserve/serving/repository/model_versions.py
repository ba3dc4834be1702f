"""All versions of a model in a worker, which are brought up, served and ended together."""

from collections.abc import Iterable, Iterator

from mpserve.serving.execution.model_instance import Served
from mpserve.serving.models.versions import age
from mpserve.serving.repository.desired_state import Wanted


class Group:
    """A wanted model in a worker: all its versions, which are brought up, served and ended together.

    Iterates over them from the oldest to the newest, which is the one that answers when none is named.
    """

    def __init__(self, wanted: Wanted, versions: Iterable[Served]) -> None:
        self.wanted = wanted
        self._versions = sorted(versions, key=lambda served: age(served.model.version))
        self.newest = self._versions[-1]

    def __iter__(self) -> Iterator[Served]:
        return iter(self._versions)

    @property
    def versions(self) -> list[str]:
        """From the oldest to the newest."""
        return [served.model.version for served in self]

    def find(self, version: str) -> Served | None:
        """The version of this name."""
        for served in self._versions:
            if served.model.version == version:  # asked of the model: its load() may have set it
                return served
        return None
