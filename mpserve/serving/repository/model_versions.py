"""All versions of a model in a worker, which are brought up, served and ended together."""

from collections.abc import Iterable, Iterator

from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.models.versions import age
from mpserve.serving.repository.desired_state import ModelSpec


class ModelVersions:
    """A wanted model in a worker: all its versions, which are brought up, served and ended together.

    Iterates over them from the oldest to the newest, which is the one that answers when none is named.
    """

    def __init__(self, spec: ModelSpec, versions: Iterable[ModelInstance]) -> None:
        self.spec = spec
        self._versions = sorted(versions, key=lambda instance: age(instance.model.version))
        self.newest = self._versions[-1]

    def __iter__(self) -> Iterator[ModelInstance]:
        return iter(self._versions)

    @property
    def versions(self) -> list[str]:
        """From the oldest to the newest."""
        return [instance.model.version for instance in self]

    def find(self, version: str) -> ModelInstance | None:
        """The version of this name."""
        for instance in self._versions:
            if instance.model.version == version:  # asked of the model: its load() may have set it
                return instance
        return None
