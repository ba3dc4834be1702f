"""Triton's ``config.pbtxt`` of ONNX and torch models: what it says of a model, and what of it has no effect here.

Source: Triton's docs/user_guide/model_configuration.md and model_repository.md, and model_config.proto.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.protobuf.text import Message, parse
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.model_settings import KINDS
from mpserve.telemetry.once import warn_once

logger = logging.getLogger(__name__)

FILE = "config.pbtxt"
VERSION = re.compile("[1-9][0-9]*")  # Triton ignores other folders
ONNX, TORCH = "onnxruntime", "pytorch"
_FILES = {ONNX: ("model.onnx",), TORCH: ("model.pt", "model.pt2")}
_PLATFORMS = {"onnxruntime_onnx": ONNX, "pytorch_libtorch": TORCH}
_REMEDIES = {
    "ensemble": "call the models one after the other from a model.py of one model (docs/reference/models.md)",
    "python": "turn its TritonPythonModel into a model.py of mpserve: execute() becomes predict (docs/reference/models.md)",
    "tensorrt": "serve the .onnx file that the plan was made from",
    "tensorflow": "convert the model with tf2onnx and serve the .onnx file",
    "openvino": "serve the .onnx file that it was made from",
    "fil": f"put the file of XGBoost, LightGBM or scikit-learn into a folder without a {FILE}",
    "dali": "decode the inputs in the preprocess of a model.py (docs/reference/models.md)",
    "vllm": "serve it with vLLM",
}
_PLATFORM_REMEDIES = {
    "tensorrt_plan": "tensorrt",
    "tensorflow_savedmodel": "tensorflow",
    "tensorflow_graphdef": "tensorflow",
}
_FOLLOWED = frozenset({
    "name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching", "instance_group",
    "default_model_filename",
})  # fmt: skip
_OF_PARTS = {
    "dynamic_batching": frozenset(
        {
            "preferred_batch_size",
            "max_queue_delay_microseconds",
            "priority_levels",
            "default_priority_level",
        }
    ),
    "instance_group": frozenset({"count", "name"}),
    "input": frozenset({"name", "data_type", "dims"}),
    "output": frozenset({"name", "data_type", "dims"}),
}
"""What is followed of a part of the file."""


class TritonConfig(NamedTuple):
    """The part of the file that is followed.

    Attributes:
        file: the path of the file itself.
        name: of the model; empty if the file does not say.
        backend: ``"onnxruntime"`` or ``"pytorch"``; empty if the file does not say.
        filename: of the model in the folder of a version; empty: that of the backend.
        versions: those to serve: how many of the newest, or which; None: all.
        batch_size: rows of a batch; 0: no batches are made.
        batch_delay: seconds to wait for a fuller batch.
        preferred: rows of a batch that waits for no more.
        concurrency: calls at once.
        priority_levels, default_priority_level: of the parameter ``priority``; None: the file does not say.
        inputs, outputs: as the file declares them, with the batch as their first dimension.
    """

    file: Path
    name: str
    backend: str
    filename: str
    versions: int | frozenset[str] | None
    batch_size: int
    batch_delay: float
    preferred: tuple[int, ...]
    concurrency: int | None
    priority_levels: int | None
    default_priority_level: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def filenames(self) -> tuple[str, ...]:
        """The names that the model's file may have."""
        return (self.filename,) if self.filename else _FILES.get(self.backend, (*_FILES[ONNX], *_FILES[TORCH]))

    def model_in(self, folder: Path) -> Path | None:
        """The model in the folder of a version; None if it is left to be found, since the file names neither it nor a backend.
        A folder of this name has the model, of the same name, and files beside it.
        """
        there = next((folder / name for name in self.filenames if (folder / name).exists()), None)
        if there is not None:
            return there / there.name if there.is_dir() else there
        if self.filename or self.backend:
            raise ConfigurationError(
                f"there is no {' or '.join(self.filenames)} in {folder}, which {self.file} describes"
            )
        return None

    def served(self, versions: Sequence[str]) -> list[str]:
        """Those of the versions that are to be served. Raises ConfigurationError if one that is asked for is not there."""
        if self.versions is None:
            return list(versions)
        if isinstance(self.versions, int):
            return sorted(versions, key=int)[-self.versions :]
        if absent := sorted(self.versions - set(versions), key=int):
            raise ConfigurationError(
                f"{self.file}: version_policy names version {absent[0]}, and there is no such folder"
            )
        return [version for version in versions if version in self.versions]

    def apply(self, model: TensorModel) -> None:
        """Tell a model, before its ``preload``, what the file says of it."""
        model.max_batch_size, model.max_batch_delay = self.batch_size, self.batch_delay
        model.preferred_batch_sizes = self.preferred
        model.concurrency = self.concurrency
        model.priority_levels, model.default_priority_level = self.priority_levels, self.default_priority_level
        model.inputs, model.outputs = self.inputs, self.outputs


def beside(folder: Path) -> TritonConfig | None:
    """The configuration of a folder with a model, or of the versions of a model of which the folder is one."""
    own = read(folder)
    return read(folder.parent) if own is None and VERSION.fullmatch(folder.name) else own


def of_file(path: Path) -> TritonConfig | None:
    """The configuration that describes this file, if there is one."""
    config = beside(path.parent)
    return config if config is not None and path.name in config.filenames else None


def versions_in(folder: Path) -> list[str] | None:
    """The versions of a model that its configuration asks for; None if there is no configuration.
    Raises ConfigurationError if there is no such version.
    """
    config = read(folder)
    if config is None:
        return None
    there = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and VERSION.fullmatch(path.name)]
    if not there:
        raise ConfigurationError(
            f"{config.file} describes a model, and there is no folder of a version beside it, such as 1"
        )
    return config.served(there)


def named(folder: Path) -> str:
    """The name of the model whose versions are in the folder."""
    config = read(folder)
    return (config.name if config else "") or folder.resolve().name


def read(folder: Path) -> TritonConfig | None:
    """The configuration in a folder; None if there is none. What has no effect here is named in the log, once.
    Raises ConfigurationError if the file cannot be read, or if nothing here serves such a model; the message says what to do.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        message = parse(file.read_text())
        backend = _backend(message)
        _tell(file, message)
        return _config(file, message, backend)
    except (OSError, UnicodeDecodeError, InvalidInput) as error:
        raise ConfigurationError(f"{file}: {error}") from None


def _backend(message: Message) -> str:
    platform, backend = _text(message, "platform"), _text(message, "backend")
    if "ensemble_scheduling" in message:
        platform = "ensemble"
    known = backend or _PLATFORMS.get(platform, platform)
    if known and known not in _FILES:
        remedy = _REMEDIES.get(_PLATFORM_REMEDIES.get(known, known), "write a model.py (docs/reference/models.md)")
        what = "an ensemble" if known == "ensemble" else f"a model for Triton's backend {known}"
        raise InvalidInput(f"it describes {what}, which mpserve does not serve: {remedy}")
    if "sequence_batching" in message:
        raise InvalidInput(
            "sequence_batching sends requests to the model that has their state, which mpserve does not do"
        )
    return known


def _config(file: Path, message: Message, backend: str) -> TritonConfig:
    rows = _one(message, "max_batch_size", int, 0)
    if rows < 0:
        raise InvalidInput(f"max_batch_size is {rows}, expected a number of 0 or more")
    batching = _one(message, "dynamic_batching", dict, None)
    batching_of: Message = batching or {}
    groups = _all(message, "instance_group", dict)
    count = sum(_one(group, "count", int, 1) for group in groups)
    return TritonConfig(
        file,
        _text(message, "name"),
        backend,
        _filename(_text(message, "default_model_filename")),
        _versions(_one(message, "version_policy", dict, {})),
        rows if batching is not None else 0,
        _one(batching_of, "max_queue_delay_microseconds", int, 0) / 1e6,
        tuple(_all(batching_of, "preferred_batch_size", int)),
        count if count > 1 else None,
        _one(batching_of, "priority_levels", int, None),
        _one(batching_of, "default_priority_level", int, None),
        *(tuple([_tensor(each, rows > 0) for each in _all(message, role, dict)]) for role in ("input", "output")),
    )


def _filename(name: str) -> str:
    if "/" in name or name in (".", ".."):
        raise InvalidInput(f"default_model_filename is {name!r}, expected the name of a file")
    return name


def _versions(policy: Message) -> int | frozenset[str] | None:
    if "all" in policy:
        return None
    if "specific" in policy:
        return frozenset(map(str, _all(_one(policy, "specific", dict, {}), "versions", int)))
    newest: int = _one(_one(policy, "latest", dict, {}), "num_versions", int, 1)
    if newest < 1:
        raise InvalidInput(f"num_versions is {newest}, expected a number of 1 or more")
    return newest


def _tensor(message: Message, is_batched: bool) -> Tensor:
    name, kind = _text(message, "name"), _text(message, "data_type")
    datatype = "BYTES" if kind == "TYPE_STRING" else kind.removeprefix("TYPE_")
    if not name:
        raise InvalidInput("an input or output has no name")
    if datatype not in DATATYPES:
        raise InvalidInput(
            f"data_type of {name!r} is {kind!r}, expected one of TYPE_STRING TYPE_{' TYPE_'.join(DATATYPES)}"
        )
    if "reshape" in message:
        raise InvalidInput(f"{name!r} has a reshape, which mpserve does not do: give it the dims that the model has")
    return Tensor(name, datatype, [*([-1] if is_batched else []), *_all(message, "dims", int)])


def _all(message: Message, name: str, kind: type) -> list[Any]:
    for value in message.get(name, ()):
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise InvalidInput(f"{name} is {value!r}, expected {_KINDS[kind]}")
    return message.get(name, [])


def _text(message: Message, name: str) -> str:
    return str(_one(message, name, str, ""))


def _one(message: Message, name: str, kind: type, default: Any) -> Any:
    values = _all(message, name, kind)
    return values[-1] if values else default


_KINDS = KINDS | {dict: "{ ... }"}


def _tell(file: Path, message: Message) -> None:
    without_effect = [name for name in message if name not in _FOLLOWED]
    for part, followed in _OF_PARTS.items():
        names = {name: None for each in _all(message, part, dict) for name in each if name not in followed}
        without_effect += [f"{part}.{name}" for name in names]
    if without_effect:
        warn_once(logger, "%s: without effect here: %s", file, ", ".join(without_effect))
