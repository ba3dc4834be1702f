"""Serves files of LightGBM (``.txt``, and ``.bst`` as KServe's lgbserver has them): what a ``Booster`` predicts."""

from typing import Any

import lightgbm
import numpy as np

from mpserve.protocol.datatypes import Array
from mpserve.runtimes.rows import PREDICT, RowsModel


class LightGBMModel(RowsModel):
    """Serves a booster. A missing value is NaN."""

    platform = "lightgbm"
    refusals = (ValueError, TypeError, lightgbm.basic.LightGBMError)
    text_is_categorical = True
    booster: lightgbm.Booster

    def preload(self) -> None:
        self.booster = lightgbm.Booster(model_file=str(self.path))
        self.features = self.booster.num_feature()
        self.columns = self.booster.feature_name()
        if self.booster.pandas_categorical:  # of these, a matrix would have to hold LightGBM's own codes
            ranges = self.booster.dump_model(num_iteration=1)["feature_infos"]
            self.categorical = [name for name in self.columns if ranges.get(name, {}).get("values")]
            self.wants_frame = True
        self.methods = {PREDICT: self._predicted}

    def _predicted(self, rows: Any) -> Array:
        if isinstance(rows, np.ndarray) and rows.dtype.kind in "biu":
            rows = rows.astype(np.float64)  # LightGBM would round integers to 32 bits
        return np.asarray(self.booster.predict(rows, num_threads=self.native_threads))
