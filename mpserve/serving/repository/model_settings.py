"""MLServer's ``model-settings.json`` beside a model file: what it says of the model, and what of it has no effect here.

Source: MLServer 1.7, mlserver/settings.py, ``ModelSettings`` and ``ModelParameters``; mlserver_sklearn, ``predict_fn``.
"""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mpserve.errors import ConfigurationError
from mpserve.telemetry.once import warn_once

logger = logging.getLogger(__name__)

FILE = "model-settings.json"
OF_SERVER = "settings.json"  # MLServer's options
_OURS = frozenset({"name", "implementation", "max_batch_size", "max_batch_time", "parameters"})
_OUR_PARAMETERS = frozenset({"uri", "version", "content_type", "extra"})
_OUR_EXTRA = frozenset({"predict_fn"})
_LOCAL = ("file://", "file:")
_CONTENT_TYPES = ("np", "pd", None)  # both are what a request shows anyhow
_DESCRIBES = frozenset({"inputs", "outputs", "platform", "versions"})  # the model file itself says more


class ModelSettings(NamedTuple):
    """The part of the file that is followed. ``batch_size`` 0 is no batches, as in MLServer; None: the file does not say."""

    name: str | None = None
    version: str = ""
    implementation: str = ""
    uri: Path | None = None
    batch_size: int | None = None
    batch_delay: float | None = None
    output: str | None = None  # of a client that names none


def read(folder: Path) -> ModelSettings | None:
    """The settings in a folder; None if there are none. What has no effect here is named in the log, once.
    Raises ConfigurationError if the file is no JSON, or a value is of a wrong type.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(f"{file}: expected a JSON object, got {type(document).__name__}")
    parameters = _value(file, document, "parameters", dict) or {}
    extra = _value(file, parameters, "extra", dict) or {}
    _tell(file, document, parameters, extra)
    uri = _value(file, parameters, "uri", str)
    if uri and uri.startswith(_LOCAL):
        uri = unquote(urlsplit(uri).path)
    if uri and "://" in uri:
        raise ConfigurationError(f"{file}: parameters.uri is {uri!r}, expected a path beside the file")
    delay = _value(file, document, "max_batch_time", (int, float))
    return ModelSettings(
        name=_value(file, document, "name", str),
        version=_value(file, parameters, "version", str) or "",
        implementation=_value(file, document, "implementation", str) or "",
        uri=folder / uri if uri else None,
        batch_size=_value(file, document, "max_batch_size", int),
        batch_delay=None if delay is None else float(delay),
        output=_value(file, extra, "predict_fn", str),
    )


def _value(file: Path, document: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = document.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ConfigurationError(f"{file}: {name} is {value!r}, expected {KINDS[kind]}")
    return value


KINDS: dict[Any, str] = {dict: "an object", str: "a text", int: "a whole number", (int, float): "a number"}
"""How a kind of value is called, in this file and in Triton's."""


def _tell(file: Path, document: dict[str, Any], parameters: dict[str, Any], extra: dict[str, Any]) -> None:
    without_effect = [name for name in document if name not in _OURS | _DESCRIBES and document[name] is not None]
    without_effect += [f"parameters.{name}" for name in parameters if name not in _OUR_PARAMETERS]
    without_effect += [f"parameters.extra.{name}" for name in extra if name not in _OUR_EXTRA]
    if parameters.get("content_type") not in _CONTENT_TYPES:
        without_effect.append("parameters.content_type")
    if (file.parent / OF_SERVER).is_file():
        without_effect.append(f"the file {OF_SERVER} (docs/reference/options.md has the options)")
    if without_effect:
        warn_once(logger, "%s: without effect here: %s", file, ", ".join(without_effect))
