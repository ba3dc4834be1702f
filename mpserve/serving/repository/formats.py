"""The formats of model files: how a file or folder is recognised, which class serves it, and what has to be installed.

A table maps formats to import strings, so a framework is imported only when a model needs it. Other packages add formats by entry
points of the group ``mpserve.runtimes``, each of which is a ``Format``. Knows no model and loads no file.
"""

import importlib
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from mpserve.errors import ConfigurationError

GROUP = "mpserve.runtimes"
FIRST = 4096  # bytes of a file that are looked at


@dataclass(frozen=True)
class Format:
    """A format of model files.

    Attributes:
        name: the word for it.
        runtime: ``module:class`` of the model, which is constructed with the model's name and the path of the file or folder.
        extra: what has to be installed, as pip takes it.
        endings: endings of file names.
        files: for a format of folders: patterns of file names, each of which the folder must have.
        accepts: looks at a file whose ending fits, or a folder that has the files; for what other formats have too.
        implementations: its names in MLServer's ``model-settings.json``, and as a backend of Triton.
        runs_code: whether a file may run code of its author when it is loaded.
        options: names of options that the constructor takes by keyword.
    """

    name: str
    runtime: str
    extra: str
    endings: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    accepts: Callable[[Path], bool] = lambda path: True
    implementations: tuple[str, ...] = ()
    runs_code: bool = False
    options: tuple[str, ...] = ()

    def holds(self, path: Path) -> bool:
        """Whether the file or folder is of this format."""
        if self.files and path.is_dir():
            return all(any(path.glob(pattern)) for pattern in self.files) and self.accepts(path)
        return path.name.lower().endswith(self.endings or (".",)) and path.is_file() and self.accepts(path)

    def load_class(self, path: Path) -> Callable[..., Any]:
        """The class that serves ``path``. Raises ConfigurationError, which says what to install, if a package is missing."""
        module_name, _, class_name = self.runtime.partition(":")
        try:
            served: Callable[..., Any] = getattr(importlib.import_module(module_name), class_name)
        except ModuleNotFoundError as missing:
            raise ConfigurationError(
                f"{path.name} needs {missing.name}, which is not installed: pip install '{self.extra}'"
            ) from None
        return served


def beginning(pattern: bytes) -> Callable[[Path], bool]:
    """Whether the first bytes of a file match a regular expression."""
    compiled = re.compile(pattern, re.DOTALL)
    return lambda path: compiled.match(_first_bytes(path)) is not None


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FIRST)
    except OSError:
        return b""


def _is_torchscript(path: Path) -> bool:
    """Whether a file of torch has code; a state_dict has only weights. What cannot be told is left to torch."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return not _first_bytes(path).startswith(b"\x80")  # a pickle, as torch.save wrote before 1.6


def _has_weights(folder: Path) -> bool:
    """Whether a Hugging Face folder has weights that transformers reads: of several patterns, one is enough."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))


XGBOOST = rb'\s*\{\s*"(learner|version)"|\{L\x00{7}\x07learner|\{L\x00{7}\x07version|binf'
"""How files of XGBoost begin: JSON, UBJSON, and the old binary form, which XGBoost itself refuses in words."""

FORMATS: tuple[Format, ...] = (
    Format(
        "Hugging Face", "mpserve.runtimes.huggingface.tasks:serve", "mpserve[huggingface]", files=("config.json",),
        accepts=_has_weights, options=("return_probabilities",),
        implementations=("mlserver_huggingface.HuggingFaceRuntime", "mlserver_huggingface.runtime.HuggingFaceRuntime"),
    ),
    Format("spaCy", "mpserve.runtimes.spacy:SpacyModel", "mpserve[spacy]", files=("meta.json", "config.cfg")),
    Format("torch.export", "mpserve.runtimes.pytorch:ExportedModel", "mpserve[torch]", (".pt2",)),
    Format(
        "TorchScript", "mpserve.runtimes.pytorch:TorchScriptModel", "mpserve[torch]", (".pt", ".pth"), accepts=_is_torchscript,
        implementations=("pytorch",),
    ),
    Format(
        "scikit-learn", "mpserve.runtimes.sklearn:PickledModel", "mpserve[sklearn]", (".joblib", ".pkl", ".pickle"),
        implementations=("mlserver_sklearn.SKLearnModel", "mlserver_sklearn.sklearn.SKLearnModel"),
        runs_code=True, options=("predict_proba",),
    ),
    Format(
        "skops", "mpserve.runtimes.sklearn:SkopsModel", "mpserve[skops]", (".skops",),
        options=("trusted_types", "predict_proba"),
    ),
    Format(
        "XGBoost", "mpserve.runtimes.xgboost:XGBoostModel", "mpserve[xgboost]", (".json", ".ubj", ".bst"),
        accepts=beginning(XGBOOST), options=("predict_proba",),
        implementations=("mlserver_xgboost.XGBoostModel", "mlserver_xgboost.xgboost.XGBoostModel"),
    ),
    Format(
        "LightGBM", "mpserve.runtimes.lightgbm:LightGBMModel", "mpserve[lightgbm]", (".txt", ".bst"),
        accepts=beginning(rb"tree\r?\n"),
        implementations=("mlserver_lightgbm.LightGBMModel", "mlserver_lightgbm.lightgbm.LightGBMModel"),
    ),
    Format(
        "CatBoost", "mpserve.runtimes.catboost:CatBoostModel", "mpserve[catboost]", (".cbm",), options=("predict_proba",),
        implementations=("mlserver_catboost.CatboostModel", "mlserver_catboost.catboost.CatboostModel"),
    ),
    Format(
        "MLflow", "mpserve.runtimes.mlflow.model:MLflowModel", "mpserve[mlflow]", files=("MLmodel",), runs_code=True,
        implementations=("mlserver_mlflow.MLflowRuntime", "mlserver_mlflow.runtime.MLflowRuntime"),
    ),
    Format("ONNX", "mpserve.runtimes.onnx:OnnxModel", "mpserve[onnx]", (".onnx",), implementations=("onnxruntime",)),
)  # fmt: skip
"""The formats that mpserve itself serves. The first that fits wins."""


class Stranger(NamedTuple):
    """What is recognised and not served: patterns of file names, what it is, and what to do."""

    patterns: tuple[str, ...]
    what: str
    remedy: str
    accepts: Callable[[Path], bool] = lambda path: True


_SCRIPT = "write a model.py that loads it (docs/reference/models.md)"
STRANGERS = (
    Stranger(
        ("*.pt", "*.pth"),
        "a state_dict of torch, which holds weights and no network",
        "save the network with torch.export.save (.pt2), or write a model.py that builds it and loads the weights",
        lambda path: not _is_torchscript(path),
    ),
    Stranger(("*.ckpt",), "a checkpoint of a training, which holds weights and no network",
             "save the network with torch.export.save (.pt2), or " + _SCRIPT),
    Stranger(("saved_model.pb",), "a TensorFlow SavedModel", "convert it with tf2onnx and serve the .onnx file, or " + _SCRIPT),
    Stranger(("*.h5", "*.keras"), "a Keras model", "export it to ONNX (model.export) and serve the .onnx file, or " + _SCRIPT),
    Stranger(("*.tflite",), "a TensorFlow Lite model", "convert it with tf2onnx and serve the .onnx file, or " + _SCRIPT),
    Stranger(("*.pmml",), "a PMML document", "serve the model that it was made from, or " + _SCRIPT + " with pypmml"),
    Stranger(("*.pdmodel", "*.pdiparams"), "a Paddle model",
             "convert it with paddle2onnx and serve the .onnx file, or " + _SCRIPT),
    Stranger(("*.plan", "*.engine", "*.trt"), "a TensorRT plan, which runs on one kind of GPU only",
             "serve the .onnx file that it was made from, or " + _SCRIPT),
    Stranger(("*.mar",), "an archive of TorchServe",
             "unpack it (it is a zip file), and serve the .pt file in it or turn its handler into a model.py"),
    Stranger(("*.ipynb",), "a notebook", "write its model into a model.py (docs/reference/models.md)"),
    Stranger(("*.gguf",), "weights of a language model for llama.cpp", "serve them with llama.cpp or vLLM"),
    Stranger(("*.safetensors",), "weights without a network", "put the config.json of the model beside it, or " + _SCRIPT),
)  # fmt: skip
"""What people also have in such folders, each with a sentence for it."""


@cache
def formats() -> tuple[Format, ...]:
    """All formats, those of other packages first, so that a package may replace one of ours.
    Raises ConfigurationError if an entry point cannot be imported or is no ``Format``.
    """
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            format_ = point.load()
        except Exception as error:
            raise ConfigurationError(
                f"the entry point {point.name} = {point.value} of {GROUP} cannot be imported: {error}"
            ) from error
        if not isinstance(format_, Format):
            raise ConfigurationError(
                f"the entry point {point.name} = {point.value} of {GROUP} is a {type(format_).__name__}, expected a Format"
            )
        found.append(format_)
    return (*found, *FORMATS)


def format_of(path: Path) -> Format | None:
    """The format of a file or folder; None if it is not known."""
    return next((each for each in formats() if each.holds(path)), None)


def named_elsewhere(implementation: str) -> Format | None:
    """The format that MLServer's name of a runtime, or Triton's of a backend, stands for."""
    return next((each for each in formats() if implementation in each.implementations), None)


def endings() -> list[str]:
    """All endings of files that are served."""
    return list(dict.fromkeys(ending for each in formats() for ending in each.endings))


def strangers(paths: Iterable[Path]) -> str:
    """What these files are and what to do, in a sentence each; empty if none is recognised."""
    told: dict[str, str] = {}
    for path in paths:
        for stranger in STRANGERS:
            if any(path.match(pattern) for pattern in stranger.patterns) and stranger.accepts(path):
                told.setdefault(stranger.what, f"{path.name} is {stranger.what}: {stranger.remedy}")
                break
    return "; ".join(told.values())
