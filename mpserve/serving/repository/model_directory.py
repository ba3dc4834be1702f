"""The models in ``--model_dir``, which are loaded at the start or on request.

An entry is ``NAME/`` or ``NAME@VERSION/`` with a ``model.py`` or a file of a known format; ``NAME/VERSION/``, where all versions
are numbers (Triton, TensorFlow Serving); beside a target also the file itself, ``NAME@VERSION.pt``. A name is compared with the
entries and never becomes a path, so it cannot lead out of the directory.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.versions import SEPARATOR, split
from mpserve.serving.repository import formats, model_settings, triton
from mpserve.serving.repository.loader import ModelSource, from_directory


class Place(NamedTuple):
    """An entry of the directory that holds a model; ``version`` is empty if the entry's name has none."""

    entry: str
    version: str


def taken_as_directory(settings: Settings) -> Settings:
    """The settings, with a target that is a folder of models as the model directory. A Python package stays a target."""
    target = Path(settings.target or "")
    if settings.target is None or settings.model_dir is not None or not target.is_dir():
        return settings
    if (target / "__init__.py").is_file() and "/" not in settings.target:
        return settings
    return replace(settings, target=None, model_dir=settings.target)


def places(settings: Settings) -> dict[str, list[Place]]:
    """The models that can be loaded: by name, an entry for each version."""
    directory = Path(settings.model_dir) if settings.model_dir is not None else None
    found: dict[str, list[Place]] = {}
    if directory is None or not directory.is_dir():
        return found
    numbered = _numbered(directory)
    # Of versions that Triton's configuration leaves out, none is a model of its own.
    for path in numbered if (directory / triton.FILE).is_file() else sorted(directory.iterdir()):
        # A mounted ConfigMap has hidden folders with its files once more (Kubernetes, AtomicWriter).
        if path.name.startswith("."):
            continue
        try:
            if _holds_model(path) or (settings.target is not None and _is_model(path)):
                name, version = (triton.named(directory), path.name) if path in numbered else _named(path)
                found.setdefault(name, []).append(Place(path.name, version))
            else:
                for name, versions in _versions_in(path).items():  # configurations may give one name to two folders
                    found.setdefault(name, []).extend(versions)
        except ConfigurationError:  # told when the model is loaded: the other models can be listed and loaded
            found.setdefault(path.name, []).append(Place(path.name, ""))
    return found


def find(settings: Settings, name: str, entries: Sequence[str]) -> list[ModelSource]:
    """The sources of these entries, to be served as ``name``; their code is read again each time.
    Raises ConfigurationError if an entry does not exist, holds several models, or has a wrong name; ModelLoadError if the
    code cannot be imported.
    """
    return [_source(settings, entry, name) for entry in entries]


def find_all(settings: Settings) -> list[ModelSource]:
    """The sources of ``--model_dir`` without a target: the model that the directory itself is, or all models in it.
    ``model_name``, which KServe gives to every server, renames a single model. Raises as ``find``, and ConfigurationError if
    there is no model, or ``model_name`` is given and there are several models.
    """
    directory = Path(settings.model_dir or "")
    found = {} if _holds_model(directory) else places(settings)
    if not found:
        return from_directory(directory, settings.model_name, settings)
    if settings.model_name is not None and len(found) > 1:
        raise ConfigurationError(
            f"--model_name={settings.model_name} can rename one model, and {directory} holds {len(found)}: {', '.join(found)}"
        )
    return [
        source
        for name, there in found.items()
        for source in find(settings, settings.model_name or name, [place.entry for place in there])
    ]


def _source(settings: Settings, entry: str, name: str) -> ModelSource:
    directory = Path(settings.model_dir or "")
    folder, _, number = entry.partition("/")
    if number:
        shelved, version = triton.named(directory / folder), number
    elif directory / entry in _numbered(directory):
        shelved, version = triton.named(directory), entry
    else:
        _versions_in(directory / entry)  # raises what ``places`` has left to the load
        split(_title(directory / entry))
        shelved, version = _named(directory / entry)
    sources = from_directory(directory / entry, name, settings)
    if len(sources) != 1:
        raise ConfigurationError(f"{directory / entry} holds {len(sources)} models, expected one, named {name}")
    [source] = sources
    source.version, source.shelved = version or source.version, shelved
    return source


def _title(path: Path) -> str:
    return path.stem if _is_model(path) else path.name


def _named(path: Path) -> tuple[str, str]:
    """The name and version of an entry. The settings in a folder may name its model otherwise."""
    name, _, version = _title(path).partition(SEPARATOR)
    if path.is_dir() and not version:
        declared = model_settings.read(path)
        if declared is not None:
            return declared.name or name, declared.version
        if (path / triton.FILE).is_file():
            return triton.named(path), version
    return name or path.name, version


def _is_model(path: Path) -> bool:
    return path.is_file() and formats.format_of(path) is not None


def _holds_model(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if (folder / "model.py").is_file() or (folder / model_settings.FILE).is_file():
        return True
    return formats.format_of(folder) is not None or any(map(_is_model, folder.iterdir()))


def _numbered(folder: Path) -> list[Path]:
    """The folders of versions in a folder: those that Triton's configuration asks for; without one, all its folders, if their
    names are numbers and each holds a model.
    """
    if not folder.is_dir():
        return []
    wanted = None if _holds_model(folder) else triton.versions_in(folder)
    if wanted is not None:
        return [folder / version for version in wanted]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    all_numbers = all(re.fullmatch("[0-9]+", path.name) and _holds_model(path) for path in inside)
    return inside if all_numbers else []


def _versions_in(folder: Path) -> dict[str, list[Place]]:
    """The places of ``NAME/1/``, ``NAME/2/``; none if the folder holds no such folders."""
    there = [Place(f"{folder.name}/{path.name}", path.name) for path in _numbered(folder)]
    return {triton.named(folder): there} if there else {}
