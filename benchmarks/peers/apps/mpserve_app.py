"""mpserve, in its shortest form: a pair of functions."""

import models


def load():
    return models.make(), models.weights()


def predict(loaded, x):
    return loaded[0](x)
