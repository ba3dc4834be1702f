"""Errors of ``kserve.errors`` that only scripts raise and catch."""

from collections.abc import Sequence
from pathlib import Path

from mpserve.errors import NotSupported, ServerNotReady
from mpserve.serving.models.model import Model


class ModelMissingError(Exception):
    """The file of a model does not exist."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path))
        self.path = path


class NoModelReady(RuntimeError):
    """None of the models is ready."""

    def __init__(self, models: Sequence[Model], detail: str | None = None) -> None:
        names = ", ".join(model.name for model in models)
        super().__init__(f"Models that are not ready: {names}.{f' {detail}' if detail else ''}")
        self.models = models


class ServerNotLive(ServerNotReady):
    """The server is not live. Clients get 503."""

    def __init__(self, message: str = "Server is not live.") -> None:
        super().__init__(message)


class UnsupportedProtocol(NotSupported):
    """A protocol is not supported. Clients get 501."""

    def __init__(self, protocol_version: str | None = None) -> None:
        super().__init__(f"Unsupported protocol {protocol_version}.")


class WorkersShouldBeLessThanMaxWorkersError(Exception):
    """A model does not work in several processes. A script raises this before it starts the server."""

    def __init__(self, max_workers: int | None = None) -> None:
        super().__init__(f"Workers cannot be greater than {max_workers}")
