"""What the loaded object of a model knows about the rows that it was fitted on. Libraries are known by their attributes.

Imports no library of models. Asked once, when a model is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

BOOSTERS = ("xgboost", "lightgbm", "catboost")
ACROSS_ROWS = (
    "IterativeImputer", "MiniBatchNMF", "MiniBatchSparsePCA", "NMF", "PatchExtractor", "SparsePCA",
)  # fmt: skip
"""Parts of scikit-learn whose answer for a row may depend on the other rows: a random draw, steps until all rows have converged,
shapes (tests/runtimes/test_joined_rows.py finds them)."""
OF_FUNCTION = "FunctionTransformer"
"""Calls a function with all rows. A ColumnTransformer keeps one without a function for columns that pass through."""
LABELS = "LabelBinarizer"
"""Makes one column or two, by the number of different labels; classifiers keep one for the way back only."""
DRAWING = {"DummyClassifier": ("stratified", "uniform")}
"""Parts of scikit-learn, and the strategies by which they draw an answer for each row, one after another."""
NUMERIC = ("numpy", "scipy", "sklearn", *BOOSTERS)
"""Packages whose functions do the same with a row, whatever the other rows are, where an estimator keeps such a function."""
NAMES = ("feature_names_in_", "feature_names_", "feature_names", "feature_name")
"""Where the names of columns are, as values or methods: scikit-learn's interface, CatBoost, XGBoost and LightGBM."""


class Known(NamedTuple):
    """What a loaded object knows about the columns of its table.

    Attributes:
        names: the names, in their order; empty: it knows none.
        gaps: what stands for a missing text, by the name of a column that was text: None or NaN. An encoder takes the other
            for a category that it has never seen.
    """

    names: Sequence[str] = ()
    gaps: Mapping[str, float | None] = {}


NOTHING = Known()


def known_of(thing: object) -> Known:
    return Known(known_columns(thing), text_gaps(thing))


def takes_missing(thing: object) -> bool:
    """Whether the library of a loaded object takes NaN for a missing value."""
    if is_of(thing, BOOSTERS):
        return True
    try:
        steps = getattr(thing, "steps", None) or getattr(thing, "transformers", None)
        if isinstance(steps, list):  # of a Pipeline the first step decides, of a ColumnTransformer any
            parts = [part[1] for part in (steps[:1] if hasattr(thing, "steps") else steps)]
            return any(map(takes_missing, parts))
        return bool(thing.__sklearn_tags__().input_tags.allow_nan)  # type: ignore[attr-defined]
    except Exception:  # other libraries have no tags, and an object may compute its attributes
        return False


def answers_each_row(thing: object, seen: set[int] | None = None) -> bool:
    """Whether an estimator's answer for a row is known not to depend on the other rows, but for the last bits of floats.
    It is not known of classes beyond scikit-learn and the boosters, nor of functions of the user: weights, a kernel.
    """
    if seen is None and type(thing).__name__ == LABELS:
        return False
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return True
    seen.add(id(thing))
    if isinstance(thing, list | tuple | Mapping):
        return all(answers_each_row(each, seen) for each in (thing.values() if isinstance(thing, Mapping) else thing))
    if not any(hasattr(thing, method) for method in ("fit", "predict", "transform")):
        return isinstance(thing, type) or not callable(thing) or _package_of(thing) in NUMERIC
    name = type(thing).__name__
    if not is_of(thing, ("sklearn", *BOOSTERS)) or name in ACROSS_ROWS:
        return False
    if name == OF_FUNCTION and not _is_by_element(getattr(thing, "func", None)):
        return False
    if name in DRAWING and getattr(thing, "strategy", None) in DRAWING[name]:
        return False
    return all(answers_each_row(each, seen) for each in getattr(thing, "__dict__", {}).values())


def _is_by_element(function: object) -> bool:
    """Whether a function of all rows is none at all, or one like ``numpy.log1p``."""
    return function is None or (isinstance(function, np.ufunc) and function.nin == 1)


def takes_texts(thing: object) -> bool:
    """Whether a loaded object takes a sequence of texts, as vectorizers of scikit-learn do."""
    while parts := getattr(thing, "steps", None) or getattr(thing, "transformer_list", None):
        thing = parts[0][1]
    return hasattr(thing, "build_analyzer")


def known_columns(thing: object) -> Sequence[str]:
    """The names of the columns that a loaded object was fitted on; none if it does not know them."""
    for attribute in NAMES if is_of(thing, BOOSTERS) else NAMES[:1]:
        try:
            names = getattr(thing, attribute, None)
            names = names() if callable(names) else names
            if names is not None and len(names):
                return [str(name) for name in names]
        except Exception:  # before fit, a property may raise whatever it likes
            continue
    return ()


def text_gaps(thing: object) -> dict[str, float | None]:
    """What stands for a missing text, by the name of each column that an encoder or imputer within has seen as text."""
    gaps: dict[str, float | None] = {}
    for part, names in _parts(thing, (), set()):
        for name, values in zip(names, _texts_of(part, len(names)), strict=True):
            if len(values):
                gaps[name] = None if any(value is None for value in values) else np.nan
    return gaps


def text_examples(thing: object) -> dict[str, str]:
    """A text of each column that an encoder within has seen as text."""
    return {
        name: value
        for part, names in _parts(thing, (), set())
        for name, values in zip(names, _texts_of(part, len(names)), strict=True)
        for value in reversed([str(value) for value in values if isinstance(value, str)])
    }


def _texts_of(part: Any, count: int) -> Sequence[Any]:
    """By column, what a part has seen, if that was text; else nothing."""
    encoded, imputed = getattr(part, "categories_", None), getattr(part, "statistics_", None)
    if isinstance(encoded, list) and len(encoded) == count:
        return [column if _is_text(column) else () for column in encoded]
    if imputed is not None and _is_text(imputed) and len(imputed) == count:
        return [[part.missing_values]] * count
    return [()] * count


def _package_of(function: object) -> str:
    """The package of a function, or of a callable object, whose class tells it."""
    return str(getattr(function, "__module__", None) or type(function).__module__).partition(".")[0]


def is_of(thing: object, libraries: Sequence[str]) -> bool:
    return type(thing).__module__.partition(".")[0] in libraries


def _is_text(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind in "OUST"


def _parts(thing: Any, names: Sequence[str], seen: set[int]) -> Iterator[tuple[Any, Sequence[str]]]:
    """The object and the estimators within it, wherever it keeps them, with the names of their columns.
    A step of a pipeline that changes no columns in number, as an imputer, hands their names on.
    """
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if not hasattr(thing, "get_params"):
        held = thing.values() if isinstance(thing, Mapping) else thing if isinstance(thing, list | tuple) else ()
        for each in held:
            yield from _parts(each, (), seen)
        return
    told = [str(name) for name in getattr(thing, "feature_names_in_", ())]
    names = told or (names if getattr(thing, "n_features_in_", None) == len(names) else ())
    yield thing, names
    for _, step in getattr(thing, "steps", ()):
        for part, known in _parts(step, names, seen):
            yield part, known
            names = known if part is step else names
    for each in vars(thing).values():
        if isinstance(each, list | tuple | Mapping) or hasattr(each, "get_params"):
            yield from _parts(each, (), seen)
