"""Makes sources of models from a file, a class, an object or a directory, before and after the fork.

A framework is imported only when a model needs it: a table maps file endings to import strings.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mpserve.errors import AcceleratorInArbiter, ConfigurationError
from mpserve.protocol.declaration import Tensor
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import FunctionModel
from mpserve.serving.models.versions import refuse_twins, split
from mpserve.serving.repository import import_target as targets
from mpserve.serving.repository.import_target import telling

logger = logging.getLogger(__name__)

RUNTIMES = {
    ".pt2": "mpserve.runtimes.pytorch:ExportedModel",
    ".pt": "mpserve.runtimes.pytorch:TorchScriptModel",
    ".pth": "mpserve.runtimes.pytorch:TorchScriptModel",
}
"""File endings in a model directory -> the class that serves such a file; the class is constructed with the file's path."""


@dataclass
class ModelSource:
    """The source of one version of a model, and its progress.
    ``build`` is None for an object of a script. ``version``, if not empty, replaces the model's own version. ``shelved`` is
    the name in ``--model_dir`` of a model that was found there; a load reads it again.
    """

    build: Callable[[], Model] | None = None
    model: Model | None = None
    preloaded: bool = False
    version: str = ""
    shelved: str = ""

    def preload(self) -> None:
        """Construct and preload in the arbiter. Code that reaches for CUDA is left to the workers.
        Raises ModelLoadError if the constructor or ``preload()`` fails.
        """
        try:
            self.obtain()
        except AcceleratorInArbiter as reached:
            stage = "a model's constructor" if self.model is None else f"preload() of model {self.model.name}"
            logger.warning("%s reached for CUDA in the arbiter and was stopped: %s. %s",
                           stage, reached.where, "It will run in each worker instead.")  # fmt: skip

    def obtain(self) -> Model:
        """The model; constructed and preloaded if necessary."""
        if self.model is None:
            assert self.build is not None
            with telling("the model's constructor"):
                self.model = self.build()
        if self.version:
            self.model.version = self.version
        if not self.preloaded:
            if inspect.iscoroutinefunction(self.model.preload):
                raise ConfigurationError(f"preload() of model {self.model.name} is async, expected a plain def")
            with telling(f"preload() of model {self.model.name}"):
                self.model.preload()
            self.preloaded = True
        return self.model

    def fresh(self) -> "ModelSource":
        """A source that constructs the same model again; an object of a script stays the same object."""
        if self.build is None:
            return self
        return replace(self, model=None, preloaded=False)

    def forget(self) -> None:
        """Let go of a model that can be constructed again."""
        if self.build is not None:
            self.model, self.preloaded = None, False


class Library(Protocol):
    """Further models that were unknown at the start. Asked in the workers, off the event loop."""

    def names(self) -> Iterable[str]:
        """The names of the models that can be loaded now."""

    def source(self, name: str) -> ModelSource:
        """The source of a model, which fails if there is no such model."""

    def forget(self, model: Model) -> None:
        """Let go of a model that is not served any more."""


def from_objects(models: Sequence[object]) -> list[ModelSource]:
    """Sources of models that exist already (``ModelServer.start``, ``asgi_app``). Classes are constructed.
    Raises ConfigurationError if an entry is no model, or two models have the same name and version.
    """
    if not isinstance(models, list | tuple):
        raise ConfigurationError(f"expected a list of models, got {type(models).__name__}: start([model])")
    for model in models:
        if not isinstance(model, Model) and not (isinstance(model, type) and issubclass(model, Model)):
            raise ConfigurationError(f"expected instances of mpserve.Model, got {model!r} ({type(model).__name__})")
    refuse_twins(models)
    return [source for model in models for source in _sources(model, repr(model), None)]


def from_target(target: str, model_name: str | None) -> list[ModelSource]:
    """Sources for ``model.py:Class``, ``model.py``, ``package.module:object``. ``model_name`` renames a single model.
    Raises ConfigurationError if the file, module or object does not exist, or it holds no model or several models;
    ModelLoadError if the code cannot be imported.
    """
    return _sources(targets.find(target), target, model_name)


def from_directory(directory: Path, model_name: str | None) -> list[ModelSource]:
    """Sources for a model directory: its ``model.py``, or the only file that a runtime serves, ``NAME[@VERSION].pt``.
    Raises ConfigurationError if the directory holds neither, or several such files; the message lists the files.
    """
    if directory.is_file():
        files = [directory]
    elif (directory / "model.py").is_file():
        file = directory / "model.py"
        return _sources(targets.find_in_file(file), str(file), model_name)
    elif directory.is_dir():
        files = [path for path in sorted(directory.iterdir()) if path.suffix in RUNTIMES]
    else:
        raise ConfigurationError(f"model directory {directory} does not exist")
    if len(files) != 1 or files[0].suffix not in RUNTIMES:
        there = ", ".join(sorted(path.name for path in directory.iterdir())) if directory.is_dir() else directory.name
        raise ConfigurationError(
            f"expected a model.py or exactly one of *{', *'.join(RUNTIMES)} in {directory}, or folders that hold such; "
            f"it holds: {there or 'nothing'}"
        )
    module_name, _, class_name = RUNTIMES[files[0].suffix].partition(":")
    try:
        runtime = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"{files[0].name} needs {missing.name}, which is not installed: pip install 'mpserve[torch]'"
        ) from None
    name, version = split(files[0].stem)
    return [ModelSource(build=partial(runtime, model_name or name, files[0]), version=version)]


def _sources(thing: object, target: str, model_name: str | None) -> list[ModelSource]:
    if isinstance(thing, ModuleType):
        name = model_name or Path(str(thing.__file__)).stem
        load = getattr(thing, "load", None)
        if inspect.iscoroutinefunction(load):
            raise ConfigurationError(f"{target}: the function load is async, expected a plain def")
        inputs, outputs = (_declared(thing, target, field) for field in ("inputs", "outputs"))
        return [ModelSource(build=partial(FunctionModel, name, thing.predict, load, inputs, outputs))]
    if isinstance(thing, Model):
        if model_name:
            thing.name = model_name
        return [ModelSource(model=thing)]
    if isinstance(thing, type) and issubclass(thing, Model):
        return [ModelSource(build=partial(_construct, thing, model_name))]
    if isinstance(thing, list | tuple) and thing:
        return from_objects(thing)
    raise ConfigurationError(f"{target} is no model: expected a subclass or instance of mpserve.Model, got {thing!r}")


def _declared(module: ModuleType, target: str, field: str) -> tuple[Tensor, ...]:
    """The tensors that a module with a function ``predict`` declares; none if the name is used for something else.
    Raises ConfigurationError if only some are tensors.
    """
    declared = getattr(module, field, ())
    if not isinstance(declared, list | tuple) or isinstance(declared, Tensor):
        return ()
    if len({isinstance(tensor, Tensor) for tensor in declared}) > 1:
        raise ConfigurationError(f"{target}: {field} are {declared!r}, expected instances of mpserve.Tensor alone")
    return tuple(tensor for tensor in declared if isinstance(tensor, Tensor))


def _construct(model_class: type[Model], model_name: str | None) -> Model:
    """Construct a class: most SDK models take the name, short models take nothing."""
    needed = [
        parameter.name
        for parameter in inspect.signature(model_class).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    if any(name not in ("name", "model_name") for name in needed):
        raise ConfigurationError(
            f"{model_class.__name__}({', '.join(needed)}) cannot be constructed by mpserve: only a name can be passed. "
            "Make an instance in the file and name that instead."
        )
    arguments: dict[str, Any] = {name: model_name or model_class.name for name in needed}
    model = model_class(**arguments)
    if model_name:
        model.name = model_name
    return model
