"""Trains a pipeline on a table with text and gaps, and writes `flats.joblib` beside this file."""

from pathlib import Path

import joblib
import pandas
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

flats = pandas.DataFrame({"city": ["oslo", "rome", "oslo", None] * 20, "rooms": [1, 2, None, 3] * 20})
prices = ["dear", "cheap", "dear", "cheap"] * 20
prepared = make_column_transformer((OneHotEncoder(), ["city"]), (SimpleImputer(), ["rooms"]))
joblib.dump(make_pipeline(prepared, LogisticRegression()).fit(flats, prices), Path(__file__).with_name("flats.joblib"))
