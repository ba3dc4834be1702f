"""Trains LightGBM on named columns, and writes `iris.txt` beside this file."""

from pathlib import Path

import lightgbm
from sklearn.datasets import load_iris

flowers, species = load_iris(return_X_y=True, as_frame=True)
parameters = {"objective": "multiclass", "num_class": 3, "verbose": -1}
model = lightgbm.train(parameters, lightgbm.Dataset(flowers, species), 10)
model.save_model(Path(__file__).with_name("iris.txt"))
