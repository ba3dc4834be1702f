"""mpserve with a predict that runs on the event loop."""

import models


def load():
    return models.make()


async def predict(model, x):
    return model(x)
