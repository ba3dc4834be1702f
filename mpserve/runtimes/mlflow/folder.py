"""Reads a folder of MLflow: what ``MLmodel`` says, and which versions made it.

The sub-package knows MLflow 2.19 to 3.17 beyond its documentation in the names of ``UNDOCUMENTED``, and the words of a refused
signature.
"""

import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import mlflow
from mlflow.models import Model as Folder
from mlflow.pyfunc import FLAVOR_NAME, scoring_server
from packaging.requirements import InvalidRequirement, Requirement

from mpserve.errors import ConfigurationError, first_line
from mpserve.telemetry.once import warn_once

logger = logging.getLogger(__name__)

scoring: Any = scoring_server  # has no type hints
UNDOCUMENTED = ((scoring, "_parse_json_data"), (Folder, "_is_signature_from_type_hint"))
"""What is used of MLflow that another version may not have."""


def read(path: Path) -> tuple[Any, Mapping[str, Any]]:
    """What the folder says of itself, and of its ``python_function`` flavor.
    Raises ConfigurationError if it cannot be read, has no such flavor, or MLflow is of another version.
    """
    _refuse_other_mlflow()
    try:
        folder: Any = Folder.load(str(path / "MLmodel"))
    except Exception as error:
        raise ConfigurationError(f"{path / 'MLmodel'} cannot be read: {first_line(error)}") from error
    flavor: Mapping[str, Any] = folder.flavors.get(FLAVOR_NAME) or {}
    if not flavor:
        raise ConfigurationError(
            f"{path} has the flavors {', '.join(folder.flavors)}, expected {FLAVOR_NAME}, which every flavor of MLflow"
            " for Python adds"
        )
    return folder, flavor


def _refuse_other_mlflow() -> None:
    """Raises ConfigurationError if MLflow lacks what this module uses: at the start, and not when a request comes."""
    lacking = [name for owner, name in UNDOCUMENTED if not hasattr(owner, name)]
    if lacking:
        raise ConfigurationError(
            f"MLflow {mlflow.__version__} has no {' and no '.join(lacking)}: expected MLflow 2.19 to 3.17, or a newer mpserve"
        )


def tell_versions(path: Path, flavor: Mapping[str, Any]) -> None:
    """Tell once that the folder was made by another Python or by other versions of libraries."""
    made = str(flavor.get("python_version", ""))
    others = []
    if made and made.split(".")[:2] != python_version().split(".")[:2]:
        others.append(f"Python {made} (here {python_version()})")
    file = path / "requirements.txt"
    for line in file.read_text().splitlines() if file.is_file() else ():
        if (other := _other_version(line)) is not None:
            others.append(other)
    if others:
        warn_once(logger, "%s was made with %s: its answers may differ", path, ", ".join(others))


def _other_version(line: str) -> str | None:
    """What a line of ``requirements.txt`` wants and what is here; None if that fits."""
    try:
        wanted = Requirement(line.partition("#")[0].strip())
    except InvalidRequirement:  # an option, or an empty line
        return None
    names = ["mlflow", "mlflow-skinny"] if wanted.name == "mlflow" else [wanted.name]
    for name in names:
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        return None if wanted.specifier.contains(here, prereleases=True) else f"{wanted} (here {here})"
    return None  # a folder also lists what the model does not need; what it does need is missed when it is loaded
