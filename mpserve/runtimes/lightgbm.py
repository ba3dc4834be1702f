"""Serves files of LightGBM (``.txt``, and ``.bst`` as KServe's lgbserver has them): what a ``Booster`` predicts."""

from typing import Any

import lightgbm
import numpy as np

from mpserve.protocol.datatypes import Array
from mpserve.runtimes.named_outputs import PREDICT
from mpserve.runtimes.rows.model import JOINED, RowsModel


class LightGBMModel(RowsModel):
    """Serves a booster. A missing value is NaN."""

    platform = "lightgbm"
    rows_joined = JOINED
    refusals = (ValueError, TypeError, lightgbm.basic.LightGBMError)
    only_numbers = True
    booster: lightgbm.Booster

    def preload(self) -> None:
        self.booster = lightgbm.Booster(model_file=str(self.path))
        self.features = self.booster.num_feature()
        self.columns = self.booster.feature_name()
        self.categorical = categorical_of(self.booster)
        self.wants_frame = bool(self.categorical)
        self.methods = {PREDICT: self._predicted}

    def _predicted(self, rows: Any) -> Array:
        if isinstance(rows, np.ndarray) and rows.dtype.kind in "biu":
            rows = rows.astype(np.float64)  # LightGBM would round integers to 32 bits
        return np.asarray(self.booster.predict(rows, num_threads=self.native_threads))


def categorical_of(booster: lightgbm.Booster) -> dict[str, Any]:
    """The columns that were categories of pandas: in a matrix, they would have to be LightGBM's own codes."""
    if not booster.pandas_categorical:
        return {}
    ranges = booster.dump_model(num_iteration=1)["feature_infos"]
    return {name: "" for name in booster.feature_name() if ranges.get(name, {}).get("values")}
