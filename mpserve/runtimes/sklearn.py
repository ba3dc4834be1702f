"""Serves files of scikit-learn, and of what follows its interface: pickles (joblib), and skops, which runs no code.

The outputs are the estimator's methods, as in MLServer: ``predict``, ``predict_proba``, ``transform``, ``decision_function``.
"""

import logging
import pickle
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.exceptions import InconsistentVersionWarning, NotFittedError
from sklearn.pipeline import Pipeline

from mpserve.errors import ConfigurationError, NotSupported, first_line
from mpserve.protocol.datatypes import Array
from mpserve.runtimes.rows.model import JOINED, RowsModel
from mpserve.serving.fitting.known import answers_each_row, is_of, known_of, takes_texts, text_examples

logger = logging.getLogger(__name__)

METHODS = ("predict", "predict_proba", "transform", "decision_function")
_OWN_THREADS = ("lightgbm",)  # packages whose estimators take all cores if nobody says how many

_warned: list[str] = []


class EstimatorModel(RowsModel):
    """Serves an estimator, which a subclass reads from its file."""

    platform = "sklearn"
    estimator: Any

    def read(self) -> Any:
        """The object in the file."""
        raise NotImplementedError

    def preload(self) -> None:
        with _versions_told(self.path):
            self.estimator = self.read()
        self.methods = {name: self._method(name) for name in METHODS if hasattr(self.estimator, name)}
        if not self.methods:
            raise ConfigurationError(
                f"{self.path.name} holds a {type(self.estimator).__name__}, expected an object with {', '.join(METHODS)}"
            )
        self.rows_joined = JOINED if answers_each_row(self.estimator) else 0
        self.columns, self.gaps = known_of(self.estimator)
        self.features = len(self.columns) or getattr(self.estimator, "n_features_in_", None)
        self.wants_frame = bool(self.columns)
        self.only_texts = takes_texts(self.estimator)
        self._know_categories()
        self.show(text_examples(self.estimator))
        labels = getattr(self.estimator, "classes_", ())
        self.labels = labels if getattr(labels, "ndim", 0) == 1 else ()

    def is_unfit(self, error: Exception) -> bool:
        return isinstance(error, NotFittedError)

    def _method(self, name: str) -> Callable[[Any], Any]:
        """A method of the estimator as an output: an array with an entry for each row."""
        method = getattr(self.estimator, name)
        counts_threads = takes_thread_count(self.estimator, name)

        def call(rows: Any) -> Any:
            result = (
                method(rows, thread_count=self.native_threads)
                if counts_threads and self.native_threads
                else method(rows)
            )
            if hasattr(result, "toarray"):  # a sparse matrix
                return result.toarray()
            return _by_row(result) if type(result) is list else result

        return call

    def _know_categories(self) -> None:
        """Of an estimator of a booster: the columns that are categories; else text would be refused, or taken for codes."""
        estimator: Any = self.estimator
        if is_of(estimator, ("lightgbm",)):
            from mpserve.runtimes.lightgbm import categorical_of as categories_of_lightgbm

            self.only_numbers = True
            self.categorical = categories_of_lightgbm(estimator.booster_)
        elif is_of(estimator, ("xgboost",)):
            from mpserve.runtimes.xgboost import categorical_of as categories_of_xgboost

            self.only_numbers = True
            self.categorical = categories_of_xgboost(estimator.get_booster())
        elif is_of(estimator, ("catboost",)):
            self.categorical = {self.columns[index]: "" for index in estimator.get_cat_feature_indices()}

    def load(self) -> None:
        if self.native_threads:
            limit_threads(self.estimator, self.native_threads)


class PickledModel(EstimatorModel):
    """Serves a pickle, made by ``joblib.dump`` or ``pickle.dump``."""

    def read(self) -> Any:
        if not _warned:
            _warned.append(self.path.name)
            logger.info(
                "%s is a pickle, which may run any code of its author: serve only pickles that you trust"
                " (--allow_pickle=no refuses them; skops files run no code)",
                self.path.name,
            )
        try:
            return joblib.load(self.path)
        except Exception as error:  # text fails in many ways, since a letter may be an instruction of a pickle
            is_cut = isinstance(error, pickle.UnpicklingError | EOFError | struct.error)
            if not is_cut and (isinstance(error, ImportError | AttributeError) or not self._is_text()):
                raise
            raise ConfigurationError(
                f"{self.path.name} is no pickle, or not a whole one ({type(error).__name__}: {first_line(error)});"
                " expected a file that joblib.dump or pickle.dump has written"
            ) from None

    def _is_text(self) -> bool:
        with self.path.open("rb") as file:
            return all(32 <= each < 127 or each in b"\t\r\n" for each in file.read(64))


class SkopsModel(EstimatorModel):
    """Serves a file of skops, whose types are those that skops trusts, or those of ``--trusted_types``."""

    def __init__(self, name: str, path: Path, predict_proba: bool = False, trusted_types: str | None = None) -> None:
        super().__init__(name, path, predict_proba)
        self.trusted = [each.strip() for each in (trusted_types or "").split(",") if each.strip()]

    def read(self) -> Any:
        import skops.io

        unknown = sorted(set(skops.io.get_untrusted_types(file=self.path)) - set(self.trusted))
        if unknown:
            raise ConfigurationError(
                f"{self.path.name} holds types that skops does not trust: {', '.join(unknown)}; to trust them:"
                f" --trusted_types={','.join([*self.trusted, *unknown])}"
            )
        return skops.io.load(self.path, trusted=self.trusted)


def limit_threads(estimator: Any, threads: int) -> None:
    """Let each part of an estimator that has threads use at most so many."""
    try:
        parameters = estimator.get_params(deep=True)
    except Exception:  # an object that only looks like an estimator
        return
    wanted = {}
    for name, value in parameters.items():
        owner = parameters.get(name.rpartition("__")[0], estimator)
        takes_all = value is None and type(owner).__module__.partition(".")[0] in _OWN_THREADS
        is_more = isinstance(value, int) and not 0 < value <= threads
        if name.rpartition("__")[2] == "n_jobs" and (takes_all or is_more):
            wanted[name] = threads
    if wanted:
        estimator.set_params(**wanted)


def _by_row(probabilities: list[Any]) -> Array:
    """The probabilities of several labels, of which scikit-learn makes one array each: [rows, labels, classes]."""
    if len({each.shape for each in probabilities}) > 1:
        raise NotSupported(
            "the labels of this model differ in their numbers of classes: expected one number, for a tensor"
        )
    return np.stack(probabilities, axis=1)


def takes_thread_count(estimator: Any, method: str) -> bool:
    """Whether a method hands ``thread_count`` to CatBoost, whose fitted estimators keep no number of threads."""
    if isinstance(estimator, Pipeline):  # which hands named arguments to its last step
        return method != "transform" and takes_thread_count(estimator.steps[-1][1], method)
    return is_of(estimator, ("catboost",)) and "thread_count" in signature(getattr(estimator, method)).parameters


@contextmanager
def _versions_told(path: Path) -> Iterator[None]:
    """Tell once that another version of scikit-learn has made the file, where the library tells it for each part."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    others = [each for each in caught if not issubclass(each.category, InconsistentVersionWarning)]
    for each in others:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    ours = [each.message for each in caught if isinstance(each.message, InconsistentVersionWarning)]
    if ours:
        logger.warning(
            "%s was made by scikit-learn %s, and this is %s: its answers may differ",
            path.name, ours[0].original_sklearn_version, ours[0].current_sklearn_version,
        )  # fmt: skip
