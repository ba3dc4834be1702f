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
    booster: lightgbm.Booster

    def preload(self) -> None:
        self.booster = lightgbm.Booster(model_file=str(self.path))
        self.features = self.booster.num_feature()
        self.columns = self.booster.feature_name()
        self.methods = {PREDICT: self._predicted}

    def _predicted(self, rows: Any) -> Array:
        if isinstance(rows, np.ndarray) and rows.dtype.kind in "biu":
            rows = rows.astype(np.float64)  # LightGBM would round integers to 32 bits
        return np.asarray(self.booster.predict(rows, num_threads=self.native_threads))
