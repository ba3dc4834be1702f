"""Trains scikit-learn's logistic regression, and writes it as `iris.onnx` beside this file."""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

flowers, species = load_iris(return_X_y=True)
model = LogisticRegression(max_iter=500).fit(flowers, species)
made = to_onnx(model, flowers[:1].astype(np.float32), options={"zipmap": False})
Path(__file__).with_name("iris.onnx").write_bytes(made.SerializeToString())
