"""MLServer: the model's class, and, run as a program, its settings. One worker is the server's own process."""

import json
import os
import sys
from pathlib import Path

import models
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

RUNTIMES = {
    ".joblib": "mlserver_sklearn.SKLearnModel",
    ".json": "mlserver_xgboost.XGBoostModel",
    ".txt": "mlserver_lightgbm.LightGBMModel",
}
"""For a file that BENCH_MODEL names."""


class Bench(MLModel):
    async def load(self):
        self.model, self.weights = models.make(), models.weights()
        return True

    async def predict(self, payload):
        y = self.model(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


def write_settings(folder):
    server = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": models.PORT,
        "grpc_port": models.GRPC_PORT,
        "metrics_port": models.METRICS_PORT,
        "metrics_dir": str(folder),
        "parallel_workers": models.WORKERS if models.WORKERS > 1 else 0,
    }
    model = {"name": "bench", "implementation": "mlserver_app.Bench"}
    if Path(models.MODEL).suffix in RUNTIMES:
        model |= {"implementation": RUNTIMES[Path(models.MODEL).suffix], "parameters": {"uri": models.MODEL}}
    if models.BATCH:
        model |= {"max_batch_size": models.BATCH, "max_batch_time": models.BATCH_DELAY}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    folder = Path(os.environ["BENCH_FOLDER"])
    write_settings(folder)
    os.chdir(folder)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    mlserver = str(Path(sys.executable).parent / "mlserver")
    os.execve(mlserver, [mlserver, "start", str(folder)], environment)
