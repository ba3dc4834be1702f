"""kserve's sklearnserver, xgbserver and lgbserver, which are not on PyPI: what each does with the file that BENCH_MODEL names.

Their ``predict`` is kept line for line (kserve 0.21); their search for a file in a folder is left out.
"""

from pathlib import Path

import kserve
import models
from kserve import logging
from kserve.utils.utils import get_predict_input, get_predict_response

for name in ("kserve", "kserve.trace", "uvicorn.access"):
    logging.KSERVE_LOG_CONFIG["loggers"][name]["level"] = "WARNING"


def sklearn():
    import joblib

    model = joblib.load(models.MODEL)
    return lambda payload: model.predict(get_predict_input(payload))


def xgboost():
    import xgboost as xgb

    booster = xgb.Booster(params={"nthread": 1}, model_file=models.MODEL)
    return lambda payload: booster.predict(xgb.DMatrix(get_predict_input(payload), nthread=1))


def lightgbm():
    from lightgbm import Booster

    booster = Booster(params={"nthread": 1}, model_file=models.MODEL)
    return lambda payload: booster.predict(get_predict_input(payload, columns=booster.feature_name()))


SERVERS = {".joblib": sklearn, ".json": xgboost, ".txt": lightgbm}


class File(kserve.Model):
    def __init__(self):
        super().__init__("bench")
        self.answer = None
        self.ready = True

    def predict(self, payload, headers=None):
        if self.answer is None:  # not in the constructor: with several workers the model is pickled
            self.answer = SERVERS[Path(models.MODEL).suffix]()
        return get_predict_response(payload, self.answer(payload), self.name)


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=models.PORT, workers=models.WORKERS, enable_grpc=False, enable_latency_logging=False
    )
    server.start([File()])
