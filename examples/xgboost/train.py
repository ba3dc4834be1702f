"""Trains XGBoost on named columns of which one has categories, and writes `flats.json` beside this file."""

from pathlib import Path

import pandas
import xgboost

flats = pandas.DataFrame({"city": ["oslo", "rome", "oslo", "rome"] * 20, "rooms": [1, 2, None, 3] * 20})
model = xgboost.XGBClassifier(n_estimators=10, enable_categorical=True)
model.fit(flats.astype({"city": "category"}), [1, 0, 1, 0] * 20)
model.save_model(Path(__file__).with_name("flats.json"))
