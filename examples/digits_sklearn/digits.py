"""A digit classifier of scikit-learn as a pair of functions: `mpserve serve examples/digits_sklearn/digits.py --workers 2`."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from mpserve import Tensor

inputs = (Tensor("image", "FP32", (-1, 8, 8)),)
outputs = (Tensor("digit", "INT64", (-1,)), Tensor("score", "FP32", (-1,)))


def load() -> SVC:
    """Fit the classifier, once before the fork. It never sees a fifth of the images, of which the demo sends one."""
    digits = load_digits()
    seen, _, labels, _ = train_test_split(
        digits.data, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return SVC(gamma=0.001).fit(seen, labels)


def predict(classifier: SVC, image: np.ndarray) -> dict[str, np.ndarray]:
    """Tell which digit each 8x8 image shows, and how clearly."""
    scores = classifier.decision_function(image.reshape(len(image), -1))
    return {"digit": classifier.classes_[scores.argmax(axis=1)], "score": scores.max(axis=1).astype(np.float32)}
