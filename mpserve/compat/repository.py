"""``kserve.ModelRepository``: the models that a script registers, and its ``load`` of further models on request.

``Library`` is the server's interface to it, in every worker. Source: the kserve SDK's model_repository.py (the interface only).
"""

import asyncio
import copy
import inspect
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from mpserve.errors import ModelLoadError
from mpserve.serving.models.model import Model
from mpserve.serving.repository.loader import ModelSource

MODEL_MOUNT_DIRS = "/mnt/models"


class ModelRepository:
    """Models by name, in one process. Each worker has a copy of the models at the start of the server."""

    def __init__(self, models_dir: str = MODEL_MOUNT_DIRS) -> None:
        self.models: dict[str, Model] = {}
        self.models_dir = models_dir

    def set_models_dir(self, models_dir: str) -> None:
        self.models_dir = models_dir

    def load_models(self) -> None:
        """Load a model from each folder of ``models_dir``. For constructors of subclasses."""
        for name in folders(self.models_dir):
            self.load_model(name)

    def load(self, name: str) -> Any:
        """Load a model and ``update`` it, or return False. Override this method, which may be async."""

    def load_model(self, name: str) -> Any:
        """Load the model of a folder. Override this method."""

    def update(self, model: Model, name: str | None = None) -> None:
        """Add a model, under ``name`` if it is given."""
        self.models[name or model.name] = model

    def unload(self, name: str) -> None:
        """Stop and remove a model. The server does not call this. Raises KeyError: there is no such model."""
        if name not in self.models:
            raise KeyError(f"model with name {name} does not exist")
        model = self.models.pop(name)
        model.stop()
        if model.engine:
            model.stop_engine()

    def get_model(self, name: str) -> Model | None:
        return self.models.get(name)

    def get_models(self) -> dict[str, Model]:
        return self.models

    async def is_model_ready(self, name: str) -> bool:
        """Whether this process has the model, and the model is ready."""
        model = self.get_model(name)
        return model is not None and model.ready


class Library:
    """The sources of a repository's models, for the server."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    def registered(self) -> list[ModelSource]:
        """The sources of the models that the repository has now."""
        return [self.source(name, named(model, name)) for name, model in self._repository.get_models().items()]

    def names(self) -> Iterable[str]:
        """The names of models that can be loaded: those of the folders."""
        return folders(self._repository.models_dir)

    def source(self, name: str, model: Model | None = None) -> ModelSource:
        """The source of a model that the repository loads or has loaded."""
        return ModelSource(build=partial(self._load, name), model=model)

    def forget(self, model: Model) -> None:
        """Remove a model that is not served any more."""
        models = self._repository.models
        for name in [name for name, other in models.items() if other is model]:
            del models[name]

    def _load(self, name: str) -> Model:
        loaded = self._repository.load(name)
        if inspect.iscoroutine(loaded):
            loaded = asyncio.run(loaded)  # in a thread without a loop
        model = self._repository.get_model(name)
        if loaded is False or model is None:
            raise ModelLoadError(f"{type(self._repository).__name__}.load({name!r}) has loaded no model of that name")
        return named(model, name)


def folders(directory: str) -> list[str]:
    """The names of the folders in a directory, which may be missing."""
    path = Path(directory)
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def named(model: Model, name: str) -> Model:
    """The model, or a shallow copy with this name. Load the model before it is copied."""
    if model.name == name:
        return model
    alias = copy.copy(model)
    alias.name = name
    return alias
