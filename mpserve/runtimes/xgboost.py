"""Serves files of XGBoost (``.json``, ``.ubj``, ``.bst``): what a ``Booster`` predicts, or what an ``XGBClassifier`` would.

A file that ``XGBClassifier.save_model`` has written says so: its ``predict`` is the class, and ``predict_proba`` is what the
booster predicts. Of any other file, ``predict`` is what the booster predicts, as in KServe's xgbserver.
"""

import json
from typing import Any

import numpy as np
import xgboost

from mpserve.protocol.datatypes import Array
from mpserve.runtimes.named_outputs import PREDICT, PROBABILITIES
from mpserve.runtimes.rows.model import JOINED, RowsModel

CLASSIFIER = "classifier"
CATEGORICAL = "c"  # a type of features
LINEAR = "gblinear"  # predicts only by way of a DMatrix
SOFTMAX, SOFTPROB = "multi:softmax", "multi:softprob"


class XGBoostModel(RowsModel):
    """Serves a booster. A missing value is NaN."""

    platform = "xgboost"
    rows_joined = JOINED
    refusals = (ValueError, TypeError, xgboost.core.XGBoostError)
    only_numbers = True
    booster: xgboost.Booster

    def preload(self) -> None:
        # From memory, since XGBoost guesses the format of a file by an ending that it does not know (.bst).
        self.booster = booster = xgboost.Booster(model_file=bytearray(self.path.read_bytes()))
        self.features = booster.num_features()
        self.columns = booster.feature_names or ()
        self.categorical = categorical_of(booster)
        self.wants_frame = bool(self.categorical)
        learner = json.loads(booster.save_config())["learner"]
        self._is_linear = learner["gradient_booster"]["name"] == LINEAR
        wrapper = json.loads(booster.attr("scikit_learn") or "{}")
        # The best iteration holds for models of the scikit-learn interface only, as in XGBoost itself.
        best = booster.attr("best_iteration") if wrapper and not self._is_linear else None
        self._until = 0 if best is None else int(best) + 1
        self.methods = {PREDICT: self._predicted}
        objective = learner["objective"]["name"]
        if wrapper.get("_estimator_type") == CLASSIFIER and objective == SOFTMAX:
            self.methods = {PREDICT: lambda rows: self._predicted(rows).astype(np.int32)}
        elif wrapper.get("_estimator_type") == CLASSIFIER:
            classes = _most_probable if objective == SOFTPROB else _more_probable
            self.methods = {PREDICT: lambda rows: classes(self._predicted(rows)), PROBABILITIES: self._probabilities}

    def load(self) -> None:
        if self.native_threads:
            self.booster.set_param({"nthread": self.native_threads})

    def _predicted(self, rows: Any) -> Array:
        until = (0, self._until)
        if self._is_linear:
            matrix = xgboost.DMatrix(rows, missing=np.nan, feature_names=self.booster.feature_names)
            return np.asarray(self.booster.predict(matrix, iteration_range=until))
        return np.asarray(self.booster.inplace_predict(rows, iteration_range=until, missing=np.nan))

    def _probabilities(self, rows: Any) -> Array:
        predicted = self._predicted(rows)
        return np.vstack((1.0 - predicted, predicted)).T if predicted.ndim == 1 else predicted


def categorical_of(booster: xgboost.Booster) -> dict[str, Any]:
    """The columns whose categories the model knows by name, as models of XGBoost 3.1 and newer do, each with one of them.
    Categories of an older model are codes, which are numbers already.
    """
    types = booster.feature_types or ()
    if CATEGORICAL not in types:
        return {}
    trees = json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]
    trees = trees.get("gbtree", trees)  # within dart
    known = trees.get("model", {}).get("cats", {}).get("enc") or []
    # Texts lie in one buffer with offsets; numbers are there as they are.
    return {
        name: "" if "offsets" in categories else categories["values"][0]
        for name, kind, categories in zip(booster.feature_names or (), types, known, strict=False)
        if kind == CATEGORICAL
    }


def _most_probable(probabilities: Array) -> Array:
    return np.asarray(probabilities.argmax(axis=1))


def _more_probable(probabilities: Array) -> Array:
    """The class of two, or of each label of a classifier of several labels."""
    return (probabilities > 0.5).astype(np.int64 if probabilities.ndim == 1 else np.float64)
