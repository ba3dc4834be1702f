"""Trains a classifier of digits, and writes `digits.joblib` and the image `seven.png` beside this file."""

from pathlib import Path

import joblib
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
PIXEL_MAXIMUM = 16

digits = load_digits()
pixels = (digits.images * 255 / PIXEL_MAXIMUM).astype("uint8")
joblib.dump(LogisticRegression().fit(pixels.reshape(-1, 64) / 255, digits.target), HERE / "digits.joblib")
Image.fromarray(pixels[digits.target == 7][0]).resize((64, 64)).save(HERE / "seven.png")
