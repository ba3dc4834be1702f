"""A scikit-learn model as a pair of functions."""

from typing import Any

from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def load() -> LogisticRegression:
    features, labels = load_iris(return_X_y=True)
    return LogisticRegression(max_iter=500).fit(features, labels)


def predict(model: LogisticRegression, rows: Any) -> Any:
    return model.predict(rows)
