"""Rows of several requests may go to an estimator together only if the answer for a row does not depend on the others."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import NMF, PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, LabelBinarizer, StandardScaler
from sklearn.svm import SVC
from sklearn.utils import all_estimators

from mpserve.config.settings import Settings
from mpserve.runtimes.sklearn import METHODS, PickledModel
from mpserve.serving.execution.batcher import limits
from mpserve.serving.fitting.known import ACROSS_ROWS, answers_each_row
from tests.cases import each

ROWS, COLUMNS, JOINED = 60, 6, 8
SLOW = ("TSNE", "MDS", "ClassicalMDS")  # have no method for new rows
WITHIN = 1e-6  # the last bits of floats, after the subtraction of nearly equal distances (Birch)


def centred(rows: Any) -> Any:
    return rows - rows.mean(axis=0)


def shares(distances: Any) -> Any:
    return distances / distances.sum()


def centred_kernel(rows: Any, others: Any) -> Any:
    return centred(rows) @ others.T


class Centred(StandardScaler):
    """A user's own class, of which nothing is known."""


def fitted() -> Iterator[tuple[str, Any, Any]]:
    """Each estimator of scikit-learn that can be made without arguments and fitted on numbers or texts, with its rows."""
    random = np.random.default_rng(0)
    numbers = random.random((ROWS, COLUMNS)) + 0.1
    texts = [" ".join(random.choice(["red", "green", "blue", "grey"], 4)) for _ in range(ROWS)]
    classes = (numbers[:, 0] > 0.6).astype(int)
    for name, kind in all_estimators():
        for rows, target in ((numbers, classes), (numbers, np.stack([classes, 1 - classes], 1)), (texts, classes)):
            if name in SLOW:
                break
            try:
                estimator = kind().fit(rows, target)
            except Exception:  # needs arguments, or rows of another kind
                continue
            yield name, estimator, rows
            break


def dense(answer: Any) -> Any:
    return np.asarray(answer.toarray() if hasattr(answer, "toarray") else answer)


def is_alike(method: Any, rows: Any) -> bool:
    """Whether a method answers rows together as it answers them alone."""
    together, alone = method(rows[:JOINED]), [method(rows[at : at + 1]) for at in range(JOINED)]
    if isinstance(together, list):  # an array for each label
        together, alone = np.stack(together), [np.stack(answer) for answer in alone]
        return np.allclose(together, np.concatenate(alone, axis=1), WITHIN, WITHIN)
    together, joined = dense(together), np.concatenate([dense(answer) for answer in alone])
    if together.dtype.kind != "f":
        return np.array_equal(together, joined)
    return together.shape == joined.shape and np.allclose(together, joined, WITHIN, WITHIN, equal_nan=True)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
def test_of_all_estimators_only_the_listed_ones_look_across_rows() -> None:
    tried, unlike = set(), set()
    for name, estimator, rows in fitted():
        for method in METHODS:
            if not hasattr(estimator, method):
                continue
            tried.add(name)
            try:
                agrees = is_alike(getattr(estimator, method), rows)
            except (ValueError, AttributeError):  # fits anything, and takes rows of another kind
                continue
            if not agrees:
                unlike.add(name)
    assert len(tried) > 100
    assert unlike <= set(ACROSS_ROWS)
    assert "NMF" in unlike  # the test would notice


NUMBERS = np.random.default_rng(1).random((ROWS, COLUMNS))
CLASSES = (NUMBERS[:, 0] > 0.5).astype(int)


def forest() -> Any:
    return RandomForestClassifier(5, random_state=0)


@each("name, estimator, is_known", [
    ("forest", forest(), True), ("pipeline", make_pipeline(StandardScaler(), PCA(2), LogisticRegression()), True),
    ("table", make_pipeline(make_column_transformer((StandardScaler(), [0, 1]), remainder="drop"), forest()), True),
    ("what passes", make_pipeline(make_column_transformer((StandardScaler(), [0]), remainder="passthrough"), forest()), True),
    ("logarithm", make_pipeline(FunctionTransformer(np.log1p), forest()), True),
    ("sums", make_pipeline(FunctionTransformer(np.cumsum, kw_args={"axis": 0}), forest()), False),
    ("a dummy within", GradientBoostingClassifier(n_estimators=2), True), ("labels within", RidgeClassifier(), True),
    ("votes", VotingClassifier([("one", forest()), ("two", LogisticRegression())]), True), ("clusters", KMeans(2), True),
    ("library's function", SelectKBest(f_classif, k=2), True), ("draws", DummyClassifier(strategy="uniform"), False),
    ("user's function", KNeighborsClassifier(weights=shares), False), ("user's kernel", SVC(kernel=centred_kernel), False),
    ("function", make_pipeline(FunctionTransformer(centred), forest()), False),
    ("own class", make_pipeline(Centred(), forest()), False),
    ("within a table", make_pipeline(make_column_transformer((Centred(), [0, 1])), forest()), False),
    ("within votes", VotingClassifier([("one", make_pipeline(NMF(2), forest()))]), False),
])  # fmt: skip
def test_rows_are_joined_by_default_if_every_part_is_known(
    name: str, estimator: Any, is_known: bool, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(NUMBERS, CLASSES)
    joblib.dump(estimator, tmp_path / "m.joblib")
    model = PickledModel("m", tmp_path / "m.joblib")
    model.preload()
    assert (limits(model, Settings()) is not None) == is_known == answers_each_row(estimator)
    given = limits(model, Settings(max_batch_size=5))
    assert given is not None  # the user knows it
    assert given.size == 5


def test_labels_are_not_joined_since_their_number_makes_the_shape() -> None:
    labels = LabelBinarizer().fit([0, 1])
    assert [labels.transform(each).shape[1] for each in ([0, 1], [0, 1, 7])] == [1, 2]
    assert not answers_each_row(labels)
