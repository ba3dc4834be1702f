"""``kserve.ModelRepository``: the models that a script registers, and how it loads further ones when somebody asks.

A subclass says in ``load`` how a model comes from its name. ``Library`` lets the server ask it, in every worker: what a
load or unload means, and when it has been done everywhere, stays the server's affair.

Source: the kserve SDK's model_repository.py (the interface only).
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
    """Models by name, in one process. Each worker has a copy of what it held when the server started."""

    def __init__(self, models_dir: str = MODEL_MOUNT_DIRS) -> None:
        self.models: dict[str, Model] = {}
        self.models_dir = models_dir

    def set_models_dir(self, models_dir: str) -> None:
        self.models_dir = models_dir

    def load_models(self) -> None:
        """Load what lies in the folders of ``models_dir``; for constructors of subclasses."""
        for name in folders(self.models_dir):
            self.load_model(name)

    def load(self, name: str) -> Any:
        """Load a model and ``update`` it, or give False; may be async. To be overridden: here it loads nothing."""

    def load_model(self, name: str) -> Any:
        """What ``load_models`` calls for each folder. To be overridden: here it loads nothing."""

    def update(self, model: Model, name: str | None = None) -> None:
        """Put a model in, under `name` if that is given."""
        self.models[name or model.name] = model

    def unload(self, name: str) -> None:
        """Stop a model and take it out; the server does so by itself, and does not call this.

        Raises:
            KeyError: there is none of that name.
        """
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
        """Whether there is such a model in this process, and ready."""
        model = self.get_model(name)
        return model is not None and model.ready


class Library:
    """A repository as the server sees it: sources of its models."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    def registered(self) -> list[ModelSource]:
        """The sources of what the repository holds by now."""
        return [self.source(name, named(model, name)) for name, model in self._repository.get_models().items()]

    def names(self) -> Iterable[str]:
        """What can be asked for: a name for each folder."""
        return folders(self._repository.models_dir)

    def source(self, name: str, model: Model | None = None) -> ModelSource:
        """The source of a model that the repository loads, or has loaded."""
        return ModelSource(build=partial(self._load, name), model=model)

    def forget(self, model: Model) -> None:
        """Take a model out that is served no more."""
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
    """The names of the folders in a directory; none if it is not there."""
    path = Path(directory)
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def named(model: Model, name: str) -> Model:
    """The model, or if it has another name a shallow copy under this one.

    The copy shares what the model holds by now, so a model should be loaded first.
    """
    if model.name == name:
        return model
    alias = copy.copy(model)
    alias.name = name
    return alias
