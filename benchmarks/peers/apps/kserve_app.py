"""The kserve SDK, without gRPC and without its line of log for each request."""

import kserve
import models
import numpy as np
from kserve import logging

for name in ("kserve", "kserve.trace", "uvicorn.access"):
    logging.KSERVE_LOG_CONFIG["loggers"][name]["level"] = "WARNING"


class Bench(kserve.Model):
    def __init__(self):
        super().__init__("bench")
        self.model = None
        self.weights = models.weights()
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        if self.model is None:  # not in the constructor: with several workers the model is pickled
            self.model = models.make()
        if not isinstance(payload, kserve.InferRequest):
            return {"predictions": self.model(np.array(payload["instances"], np.float32)).tolist()}
        y = self.model(payload.inputs[0].as_numpy())
        output = kserve.InferOutput("y", list(y.shape), "FP32", data=y)
        return kserve.InferResponse(payload.id, "bench", [output], use_binary_outputs=payload.use_binary_outputs)


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=models.PORT, workers=models.WORKERS, enable_grpc=False, enable_latency_logging=False
    )
    server.start([Bench()])
