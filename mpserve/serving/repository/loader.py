"""Makes sources of models from a file, a class, an object or a directory, before and after the fork."""

import inspect
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from mpserve.config.settings import Settings
from mpserve.errors import AcceleratorInArbiter, ConfigurationError
from mpserve.protocol.declaration import Tensor
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import FunctionModel, TensorModel
from mpserve.serving.models.versions import refuse_twins, split
from mpserve.serving.repository import formats, model_settings, triton
from mpserve.serving.repository import import_target as targets
from mpserve.serving.repository.import_target import telling
from mpserve.serving.repository.model_settings import ModelSettings
from mpserve.serving.repository.triton import TritonConfig

logger = logging.getLogger(__name__)


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
            stage = "a model's constructor" if self.model is None else _preload_of(self.model)
            logger.warning("%s reached for CUDA in the arbiter and was stopped: %s. %s",
                           stage, reached.where, "It will run in each worker instead.")  # fmt: skip

    def obtain(self) -> Model:
        """The model; constructed and preloaded if necessary."""
        begin = time.monotonic()
        if self.model is None:
            assert self.build is not None
            with telling("the model's constructor"):
                self.model = self.build()
        if self.version:
            self.model.version = self.version
        if not self.preloaded:
            if inspect.iscoroutinefunction(self.model.preload):
                raise ConfigurationError(f"preload() of model {self.model.name} is async, expected a plain def")
            with telling(_preload_of(self.model)):
                self.model.preload()
            self.preloaded = True
            self.model.preload_seconds = time.monotonic() - begin
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


def _preload_of(model: Model) -> str:
    """What ``preload`` runs, as the user has named it."""
    if isinstance(model, FunctionModel):
        return f"load() of model {model.name}"
    is_users = not type(model).__module__.startswith("mpserve.")
    return f"{'preload()' if is_users else 'the load'} of model {model.name}"


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
            raise ConfigurationError(f"expected instances of mpserve.Model, got {targets.described(model)}")
    refuse_twins(models)
    return [source for model in models for source in _sources(model, repr(model), None)]


def from_target(target: str, model_name: str | None, settings: Settings | None = None) -> list[ModelSource]:
    """Sources for ``model.py:Class``, ``model.py``, ``package.module:object``, or the file of a model, ``model.joblib``.
    ``model_name`` renames a single model.
    Raises ConfigurationError if the file, module or object does not exist, or it holds no model or several models;
    ModelLoadError if the code cannot be imported.
    """
    file = Path(target)
    if file.suffix != ".py" and (file.is_file() or target.endswith(tuple(formats.endings()))):
        return [_from_file(file, model_name, settings or Settings())]
    return _sources(targets.find(target), target, model_name)


def from_directory(directory: Path, model_name: str | None, settings: Settings | None = None) -> list[ModelSource]:
    """Sources for a model directory: its ``model.py``, or the only model in it, a file or the directory itself.
    Raises ConfigurationError if the directory holds neither, or several such files; the message lists the files.
    """
    if directory.is_file():
        return [_from_file(directory, model_name, settings or Settings())]
    if not directory.is_dir():
        raise ConfigurationError(f"model directory {directory} does not exist")
    config = triton.beside(directory)
    described = config.model_in(directory) if config is not None else None
    if described is not None:
        return [_from_file(described, model_name, settings or Settings(), config)]
    file = directory / "model.py"
    if file.is_file():
        return _sources(targets.find_in_file(file), str(file), model_name)
    declared = model_settings.read(directory)
    if declared is None or declared.uri is None:
        return [_from_file(_only_file(directory), model_name, settings or Settings())]
    return [_from_file(_named_by(declared.uri), model_name, settings or Settings(), declared=declared)]


def _named_by(uri: Path) -> Path:
    """The model that settings name: a file, a folder that is a model, or a folder with a file."""
    return _only_file(uri) if uri.is_dir() else uri


def _only_file(directory: Path) -> Path:
    """The model in a directory: the directory itself, or its only file of a known format."""
    if formats.format_of(directory) is not None:
        return directory
    there = sorted(directory.iterdir())
    files = [path for path in there if formats.format_of(path) is not None]
    if len(files) == 1:
        return files[0]
    names = ", ".join(path.name for path in there) or "nothing"
    if not files and (told := formats.strangers([*there, *sorted(directory.glob("*/*"))])):
        raise ConfigurationError(f"there is no model to serve in {directory}: {told}")
    raise ConfigurationError(
        f"expected a model.py or exactly one of *{', *'.join(formats.endings())} in {directory}, or folders that hold such; "
        f"it holds: {names}"
    )


def _from_file(
    path: Path,
    model_name: str | None,
    settings: Settings,
    config: TritonConfig | None = None,
    declared: ModelSettings | None = None,
) -> ModelSource:
    """The source of a file or folder of a known format, with what its ``model-settings.json`` or ``config.pbtxt`` says.
    ``declared``: the settings that name it, which are otherwise looked for beside it.
    """
    if not path.exists():
        raise ConfigurationError(targets.no_file(path))
    declared = declared or _declared_beside(path)
    config = config or triton.of_file(path)
    format_ = formats.named_elsewhere(declared.implementation) or formats.format_of(path)
    if format_ is None and config is not None and not path.name.endswith(tuple(formats.endings())):
        format_ = formats.named_elsewhere(config.backend)
    if format_ is None:
        if what := formats.strangers([path]):
            raise ConfigurationError(what)
        of = f", which {model_settings.FILE} gives to {declared.implementation}" if declared.implementation else ""
        raise ConfigurationError(
            f"{path.name} is no model of a known format{of}; expected *{', *'.join(formats.endings())}"
        )
    if format_.runs_code and not settings.allow_pickle:
        what = "a pickle" if path.is_file() else f"a folder of {format_.name}"
        raise ConfigurationError(
            f"{path} is {what}, which may run code of its author, and --allow_pickle=no refuses it; "
            "save the model with skops (.skops), which runs none"
        )
    runtime = format_.load_class(path)
    name, version = split(path.name if path.is_dir() else path.stem)
    given = model_name or declared.name or (config.name if config is not None else "") or name
    options = {option: getattr(settings, option) for option in format_.options}
    build = partial(_build, partial(runtime, given, path, **options), declared, config)
    return ModelSource(build=build, version=version or declared.version)


def _declared_beside(path: Path) -> ModelSettings:
    """What the settings beside a file, or in a folder, say of it; nothing if they are of another file."""
    declared = model_settings.read(path) if path.is_dir() else None
    declared = declared or model_settings.read(path.parent)
    if declared is None or (declared.uri is not None and declared.uri.resolve() != path.resolve()):
        return ModelSettings()
    return declared


def _build(construct: Callable[[], Model], declared: ModelSettings, config: TritonConfig | None) -> Model:
    model = construct()
    if isinstance(model, TensorModel):
        if config is not None:
            config.apply(model)
        if declared.batch_size is not None:
            model.max_batch_size = declared.batch_size
        if declared.batch_delay is not None:
            model.max_batch_delay = declared.batch_delay
        model.preferred_output = declared.output
    return model


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
    raise ConfigurationError(
        f"{target} is no model: expected a subclass or an instance of mpserve.Model, got {targets.described(thing)}"
        f"{_pair_with(thing)}"
    )


def _pair_with(thing: object) -> str:
    """What to name for a pair of functions, of which one was named."""
    module = sys.modules.get(getattr(thing, "__module__", ""))
    is_one = inspect.isfunction(thing) and callable(getattr(module, "predict", None))
    return "; to serve the functions load and predict, name their file or module alone" if is_one else ""


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
