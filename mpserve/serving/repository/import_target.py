"""Finds a model in the user's code: imports a target, and looks for models in it.

Every fault of a target is told here in one sentence. Knows nothing of the life of a model.
"""

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelLoadError, MPServeError
from mpserve.serving.models.model import Model
from mpserve.telemetry import prometheus

_folders: set[Path] = set()  # where the files lie that have been imported


@contextmanager
def telling(stage: str) -> Iterator[None]:
    """Run the user's code of a load. Turn its exception into a ModelLoadError that names the stage.
    ``sys.exit()`` is such an exception, whatever its status: the server does not end in success because a model gave up.
    """
    try:
        with prometheus.loading():
            yield
    except MPServeError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelLoadError(f"{stage} failed: {type(error).__name__}: {error}") from error


def find(target: str) -> object:
    """The object that ``model.py:Class``, ``model.py`` or ``package.module:object`` names.
    The object is a model, its class, a list of models or classes, or a module with a function ``predict``.
    Raises ConfigurationError if the file, module or object does not exist, or it holds no model or several models;
    ModelLoadError if the code cannot be imported.
    """
    place, _, attribute = target.partition(":")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    return _attribute(module, attribute, target) if attribute else _only_model(module, target)


def find_function(target: str) -> Callable[..., Any]:
    """The function that ``module.py:function`` or ``package.module:function`` names; raises as ``find``."""
    try:
        function = find(target)
    except AcceleratorInArbiter as reached:
        raise ConfigurationError(
            f"{target} reaches for CUDA ({reached.where}): put the function into a module of its own"
        ) from None
    if not callable(function):
        raise ConfigurationError(f"{target} is of type {type(function).__name__}, expected a function")
    return function


def find_in_file(path: Path) -> object:
    """The only model of a file; raises as ``find``."""
    return _only_model(_import_file(path), str(path))


def script_of(target: str | None) -> Path | None:
    """The script that a target names, if it is one that starts a server; else None."""
    is_script = target is not None and target.endswith(".py") and starts_server(Path(target))
    return Path(target) if target is not None and is_script else None


def starts_server(path: Path) -> bool:
    """Whether a script calls ``ModelServer(...)``, also in a function that it calls. If so, run the script, do not search it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError):
        return False
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    will_run = [node for node in tree.body if node not in functions.values() and not isinstance(node, ast.ClassDef)]
    for part in will_run:
        for called in map(_called, ast.walk(part)):
            if called == "ModelServer":
                return True
            if called in functions:
                will_run.append(functions.pop(called))
    return False


def _called(node: ast.AST) -> str | None:
    """The last part of the name that a call calls."""
    if not isinstance(node, ast.Call):
        return None
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(no_file(path))
    folder = path.resolve().parent
    _forget_neighbours(folder, besides=path.stem)
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))  # as `python model.py` would, so that it finds its neighbours
    is_free = path.stem not in sys.modules and path.stem.isidentifier()
    name = path.stem if is_free else f"mpserve_target_{folder.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_SourceLoader(name, str(path.absolute())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look a class's module up there
    try:
        with telling(f"the import of {path}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # as `import` does: a worker may try again
        raise
    return module


class _SourceLoader(SourceFileLoader):
    """Compiles the file each time.
    Python takes a compilation in ``__pycache__`` for fresh if the file has the same size and was changed in the same second.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _forget_neighbours(folder: Path, besides: str) -> None:
    """Forget the modules beside a file, so that the file imports its own neighbours.
    Python keeps modules by name alone: ``import utils`` in one version of a model would give another version's module. Code
    that was imported keeps its modules. ``besides`` is the name of the file itself.
    """
    for name in {entry.stem for entry in folder.iterdir()} - {besides}:
        file = Path(getattr(sys.modules.get(name), "__file__", None) or "")
        if file.name and not _folders.isdisjoint((file.parent, file.parent.parent)):  # NAME.py, NAME/__init__.py
            for module in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
                del sys.modules[module]
    importlib.invalidate_caches()
    _folders.add(folder)


def _import_module(name: str) -> ModuleType:
    if "/" in name or name.startswith("."):
        raise ConfigurationError(f"there is no file or folder {name}{_meant(Path(name))}")
    cwd = str(Path.cwd())
    if cwd not in sys.path:
        sys.path.insert(0, cwd)
    with telling(f"the import of {name}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                raise
            raise ConfigurationError(_nothing(name, missing.name)) from None


def _nothing(name: str, missing: str) -> str:
    """What is not there: a module, or a file or folder whose name was mistyped."""
    if Path(name).exists():  # flats.joblib:predict
        return f"{name} is no Python code, and has no objects to name after a colon; name {name} alone"
    return f"there is no file or folder {name}, and no module named {missing}{_meant(Path(name))}"


def no_file(path: Path) -> str:
    """The message for a file that does not exist."""
    return f"there is no file {path}{_meant(path)}"


def _meant(path: Path) -> str:
    folder = path.parent
    there = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, there, n=1)
    return f"; did you mean {folder / close[0]}?" if close else ""


def _attribute(module: ModuleType, attribute: str, target: str) -> object:
    thing: object = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            models = ", ".join(_models(module)) or "none"
            if models == "none" and callable(getattr(module, "predict", None)):
                models += f"; to serve its function predict, name {target.partition(':')[0]} alone"
            raise ConfigurationError(f"{target}: there is no {attribute!r} in {module.__name__}; its models: {models}")
        thing = getattr(thing, part)
    return thing


def _models(module: ModuleType) -> dict[str, object]:
    """The models of a module by name: instances, or else the classes that are defined there."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    instances: dict[str, object] = {name: value for name, value in public.items() if isinstance(value, Model)}
    return instances or {
        name: value
        for name, value in public.items()
        if isinstance(value, type) and issubclass(value, Model) and value.__module__ == module.__name__
    }


def _only_model(module: ModuleType, target: str) -> object:
    """The model that a module means if no object is named: its only model, or the module with its ``predict``."""
    found = _models(module)
    if len(found) > 1:
        names = ", ".join(f"{target}:{name}" for name in found)
        raise ConfigurationError(f"{target} holds {len(found)} models; name one: {names}")
    if found:
        return found.popitem()[1]
    if callable(getattr(module, "predict", None)):
        return module
    main = next((Path(folder, "__main__.py") for folder in getattr(module, "__path__", ())), None)
    run = f"; to run it as python -m {target} does, name {main}" if main is not None and main.is_file() else ""
    apps = [described(value) for value in vars(module).values() if _is_web(value)]
    web = f"; it holds {apps[0]}, which uvicorn, gunicorn or flask run serves" if apps else ""
    raise ConfigurationError(
        f"{target} holds no model: expected a subclass or an instance of mpserve.Model, or a function predict{run}{web}"
    )


def described(thing: object) -> str:
    """An object that is not a model, in words."""
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    if callable(thing) and hasattr(thing, "__name__"):
        return f"the function {thing.__name__}"
    kind = type(thing).__name__
    if type(thing).__module__ == "builtins":
        return f"{thing!r:.60} ({kind})"
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}{', a web application' if _is_web(thing) else ''}"


def _is_web(thing: object) -> bool:
    return type(thing).__name__ in ("FastAPI", "Flask", "Starlette")
