"""From what the user names (a file, a class, an object, a directory) to models, before and after the fork.

A framework is imported only when a model names it: the files a model directory may hold are found by a table of import strings.
"""

import ast
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from mpserve.errors import AcceleratorInMaster, ConfigurationError, ModelLoadError, MPServeError
from mpserve.serving.model import Model
from mpserve.serving.tensors import FunctionModel

logger = logging.getLogger(__name__)

RUNTIMES = {
    ".pt2": "mpserve.runtimes.pytorch:ExportedModel",
    ".pt": "mpserve.runtimes.pytorch:TorchScriptModel",
    ".pth": "mpserve.runtimes.pytorch:TorchScriptModel",
}
"""File endings that a model directory may hold -> the class that serves such a file, constructed with its path."""


@dataclass
class ModelSource:
    """Where a model comes from, and how far it has got. ``build`` is None for an object that a script had already made."""

    build: Callable[[], Model] | None = None
    model: Model | None = None
    preloaded: bool = False

    def preload(self) -> None:
        """Construct and preload in the master. What reaches for CUDA is left to the workers.

        Raises:
            ModelLoadError: the constructor or ``preload()`` failed.
        """
        try:
            self.obtain()
        except AcceleratorInMaster as reached:
            logger.warning(
                "a model reached for CUDA in the master and was stopped: %s. %s",
                reached.where,
                "It will be constructed and loaded in each worker instead.",
            )

    def obtain(self) -> Model:
        """The model, constructed and preloaded if that is still to be done."""
        try:
            if self.model is None:
                assert self.build is not None
                self.model = self.build()
            if not self.preloaded:
                self.model.preload()
                self.preloaded = True
        except MPServeError:
            raise
        except Exception as error:
            stage = "its constructor" if self.model is None else f"preload() of model {self.model.name}"
            raise ModelLoadError(f"{stage} failed: {type(error).__name__}: {error}") from error
        return self.model


def from_objects(models: Sequence[object]) -> list[ModelSource]:
    """Sources of models that exist already (``ModelServer.start``, ``asgi_app``). Classes are constructed.

    Raises:
        ConfigurationError: something in the list is no model, or two have one name.
    """
    if not isinstance(models, list | tuple):
        raise ConfigurationError(f"expected a list of models, got {type(models).__name__}: start([model])")
    for model in models:
        if not isinstance(model, Model) and not (isinstance(model, type) and issubclass(model, Model)):
            raise ConfigurationError(f"expected instances of mpserve.Model, got {model!r} ({type(model).__name__})")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"two models are named {name!r}; give each its own name")
    return [ModelSource(model=m) if isinstance(m, Model) else ModelSource(build=m) for m in models]


def from_target(target: str, model_name: str | None) -> list[ModelSource]:
    """Sources for ``model.py:Class``, ``model.py``, ``package.module:object``.

    ``model_name`` overrides the name of a single model when given.

    Raises:
        ConfigurationError: there is no such file, module or object, or it holds no model or more than one.
    """
    place, _, attribute = target.partition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found = [_attribute(module, attribute, target)] if attribute else _candidates(module, target)
    sources: list[ModelSource] = []
    for thing in found:
        sources += _sources(thing, target, model_name)
    return sources


def from_directory(directory: Path, model_name: str | None) -> list[ModelSource]:
    """Sources for a model directory: its ``model.py``, else the one file that a runtime serves.

    Raises:
        ConfigurationError: the directory holds neither, or several such files; the message lists what is there.
    """
    if directory.is_file():
        files = [directory]
    elif (directory / "model.py").is_file():
        return from_target(str(directory / "model.py"), model_name)
    elif directory.is_dir():
        files = [path for path in sorted(directory.iterdir()) if path.suffix in RUNTIMES]
    else:
        raise ConfigurationError(f"model directory {directory} does not exist")
    if len(files) != 1 or files[0].suffix not in RUNTIMES:
        there = ", ".join(sorted(path.name for path in directory.iterdir())) if directory.is_dir() else directory.name
        raise ConfigurationError(
            f"expected a model.py or exactly one of *{', *'.join(RUNTIMES)} in {directory}; it holds: {there or 'nothing'}"
        )
    module_name, _, class_name = RUNTIMES[files[0].suffix].partition(":")
    try:
        runtime = getattr(importlib.import_module(module_name), class_name)
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"{files[0].name} needs {missing.name}, which is not installed: pip install 'mpserve[torch]'"
        ) from missing
    return [ModelSource(build=partial(runtime, model_name or files[0].stem, files[0]))]


def starts_server(path: Path) -> bool:
    """Whether a script itself calls ``ModelServer(...)`` in its main part, so that it is to be run, not searched for models."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError):
        return False
    main_part = [
        node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    calls = (node.func for part in main_part for node in ast.walk(part) if isinstance(node, ast.Call))
    names = (call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls)
    if "ModelServer" in names:
        return True
    # `if __name__ == "__main__": main()` with ModelServer(...) inside main().
    guarded = any(isinstance(part, ast.If) and "__main__" in ast.dump(part.test) for part in main_part)
    return guarded and "ModelServer" in {getattr(node, "id", None) for node in ast.walk(tree)}


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python model.py` would, so that it finds its neighbours
    name = path.stem if path.stem not in sys.modules and path.stem.isidentifier() else f"mpserve_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look a class's module up there
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not (name == missing.name or name.startswith(f"{missing.name}.")):
            raise
        hint = f"; did you mean {name}.py?" if Path(f"{name}.py").is_file() else ""
        raise ConfigurationError(f"there is no module named {missing.name}{hint}") from None


def _attribute(module: ModuleType, attribute: str, target: str) -> object:
    thing: object = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            public = ", ".join(sorted(name for name in vars(module) if not name.startswith("_"))) or "nothing public"
            raise ConfigurationError(f"{target}: {module.__name__} has no {attribute!r}; it has {public}")
        thing = getattr(thing, part)
    return thing


def _candidates(module: ModuleType, target: str) -> list[object]:
    """What a module that was named without an object must mean: its one model."""
    own = [(name, value) for name, value in vars(module).items() if not name.startswith("_")]
    objects: list[tuple[str, object]] = [(n, v) for n, v in own if isinstance(v, Model)]
    classes: list[tuple[str, object]] = [
        (n, v) for n, v in own if isinstance(v, type) and issubclass(v, Model) and v.__module__ == module.__name__
    ]
    found = objects or classes
    if not found and callable(getattr(module, "predict", None)):
        found = [("predict", module)]
    if len(found) == 1:
        return [found[0][1]]
    if not found:
        raise ConfigurationError(
            f"{target} holds no model: expected a subclass or an instance of mpserve.Model, or a function predict"
        )
    raise ConfigurationError(
        f"{target} holds {len(found)} models; name one: " + ", ".join(f"{target}:{n}" for n, _ in found)
    )


def _sources(thing: object, target: str, model_name: str | None) -> list[ModelSource]:
    if isinstance(thing, ModuleType):
        name = model_name or Path(str(thing.__file__)).stem
        return [ModelSource(build=partial(FunctionModel, name, thing.predict, getattr(thing, "load", None)))]
    if isinstance(thing, Model):
        if model_name:
            thing.name = model_name
        return [ModelSource(model=thing)]
    if isinstance(thing, type) and issubclass(thing, Model):
        return [ModelSource(build=partial(_construct, thing, model_name))]
    if isinstance(thing, list | tuple) and thing:
        return from_objects(thing)
    raise ConfigurationError(
        f"{target} is no model: expected a subclass or an instance of mpserve.Model, got {thing!r}"
    )


def _construct(model_class: type[Model], model_name: str | None) -> Model:
    """Construct a class as it wants: most SDK models take the name, short ones take nothing."""
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
