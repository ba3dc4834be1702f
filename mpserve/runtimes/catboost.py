"""Serves files of CatBoost (``.cbm``): the classes and probabilities of a classifier, or the values of a regression."""

from typing import Any

import catboost

from mpserve.protocol.datatypes import Array
from mpserve.runtimes.named_outputs import PREDICT, PROBABILITIES
from mpserve.runtimes.rows.model import JOINED, RowsModel


class CatBoostModel(RowsModel):
    """Serves a model of CatBoost. A missing value is NaN."""

    platform = "catboost"
    rows_joined = JOINED
    refusals = (ValueError, TypeError, catboost.CatBoostError)

    def preload(self) -> None:
        model = catboost.CatBoost()
        model.load_model(str(self.path))
        self.labels = model.classes_
        self.columns = model.feature_names_
        self.features = len(self.columns)
        self.categorical = {self.columns[index]: "" for index in model.get_cat_feature_indices()}
        self.wants_frame = bool(self.categorical)  # CatBoost refuses categories in a matrix of floats
        self.methods = {PREDICT: self._predicted}
        kind = catboost.CatBoostClassifier if len(self.labels) else catboost.CatBoostRegressor
        self.model = kind()
        self.model.load_model(str(self.path))
        if len(self.labels):
            self.methods = {PREDICT: self._predicted, PROBABILITIES: self._probabilities}

    def _predicted(self, rows: Any) -> Array:
        array: Array = self.model.predict(rows, thread_count=self._threads)
        return array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array

    def _probabilities(self, rows: Any) -> Array:
        array: Array = self.model.predict_proba(rows, thread_count=self._threads)
        return array

    @property
    def _threads(self) -> int:
        return self.native_threads or -1
