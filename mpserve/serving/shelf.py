"""The models that lie in ``--model_dir`` under names of their own, to be loaded when somebody asks for them.

``model_dir/NAME/`` with a ``model.py`` or a file that a runtime serves, or the file itself, ``model_dir/NAME.pt``. A name
is looked up among what is there and never made into a path, so it cannot lead out of the directory.
"""

from pathlib import Path

from mpserve.errors import ConfigurationError
from mpserve.serving.loader import RUNTIMES, ModelSource, from_directory
from mpserve.settings import Settings


def places(settings: Settings) -> dict[str, Path]:
    """What can be loaded, by name."""
    directory = Path(settings.model_dir) if settings.model_dir is not None else None
    if directory is None or not directory.is_dir():
        return {}
    entries = sorted(directory.iterdir())
    found = {path.name: path for path in entries if _holds_model(path)}
    if settings.target is not None:  # else such a file is the model that the server was started for
        found = {path.stem: path for path in entries if path.is_file() and path.suffix in RUNTIMES} | found
    return found


def _holds_model(folder: Path) -> bool:
    return folder.is_dir() and ((folder / "model.py").is_file() or any(p.suffix in RUNTIMES for p in folder.iterdir()))


def find(settings: Settings, name: str) -> ModelSource:
    """The source of one of these models; its code is read anew each time.

    Raises:
        ConfigurationError: it is not there, or it is several.
        ModelLoadError: its code cannot be imported.
    """
    place = places(settings).get(name)
    if place is None:
        raise ConfigurationError(f"there is no model {name} in {settings.model_dir} any more")
    sources = from_directory(place, name)
    if len(sources) != 1:
        raise ConfigurationError(f"{place} holds {len(sources)} models, expected one, named {name}")
    return sources[0]
