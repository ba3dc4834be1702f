"""The models in ``--model_dir``, which are loaded at the start or on request.

An entry is ``NAME/`` or ``NAME@VERSION/`` with a ``model.py`` or a file that a runtime serves; beside a target also the file
itself, ``NAME@VERSION.pt``. A name is compared with the entries and never becomes a path, so it cannot lead out of the directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.versions import SEPARATOR, split
from mpserve.serving.repository.loader import RUNTIMES, ModelSource, from_directory


class Place(NamedTuple):
    """An entry of the directory that holds a model; ``version`` is empty if the entry's name has none."""

    entry: str
    version: str


def places(settings: Settings) -> dict[str, list[Place]]:
    """The models that can be loaded: by name, an entry for each version."""
    directory = Path(settings.model_dir) if settings.model_dir is not None else None
    found: dict[str, list[Place]] = {}
    if directory is None or not directory.is_dir():
        return found
    for path in sorted(directory.iterdir()):
        # A mounted ConfigMap has hidden folders with its files once more (Kubernetes, AtomicWriter).
        if not path.name.startswith(".") and (_holds_model(path) or (settings.target is not None and _is_model(path))):
            name, _, version = _title(path).partition(SEPARATOR)
            found.setdefault(name or path.name, []).append(Place(path.name, version))
    return found


def find(settings: Settings, name: str, entries: Sequence[str]) -> list[ModelSource]:
    """The sources of these entries, to be served as ``name``; their code is read again each time.
    Raises ConfigurationError if an entry does not exist, holds several models, or has a wrong name; ModelLoadError if the
    code cannot be imported.
    """
    return [_source(Path(settings.model_dir or ""), entry, name) for entry in entries]


def find_all(settings: Settings) -> list[ModelSource]:
    """The sources of ``--model_dir`` without a target: the model that the directory itself is, or all models in it.
    ``model_name``, which KServe gives to every server, renames a single model. Raises as ``find``, and ConfigurationError if
    there is no model, or ``model_name`` is given and there are several models.
    """
    directory = Path(settings.model_dir or "")
    found = {} if _holds_model(directory) else places(settings)
    if not found:
        return from_directory(directory, settings.model_name)
    if settings.model_name is not None and len(found) > 1:
        raise ConfigurationError(
            f"--model_name={settings.model_name} can rename one model, and {directory} holds {len(found)}: {', '.join(found)}"
        )
    return [
        source
        for name, there in found.items()
        for source in find(settings, settings.model_name or name, [place.entry for place in there])
    ]


def _source(directory: Path, entry: str, name: str) -> ModelSource:
    place = directory / entry
    shelved, version = split(_title(place))
    sources = from_directory(place, name)
    if len(sources) != 1:
        raise ConfigurationError(f"{place} holds {len(sources)} models, expected one, named {name}")
    [source] = sources
    source.version, source.shelved = version or source.version, shelved
    return source


def _title(path: Path) -> str:
    return path.stem if _is_model(path) else path.name


def _is_model(path: Path) -> bool:
    return path.suffix in RUNTIMES and path.is_file()


def _holds_model(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "model.py").is_file() or any(map(_is_model, folder.iterdir())))
