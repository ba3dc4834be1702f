"""A predictor in the manner of KServe's custom_model: flags, V1 and V2, response headers, a middleware, an own route."""

import argparse
import base64
import os
import time

import numpy as np
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, logging, model_server
from kserve.errors import InvalidInput
from kserve.logging import logger
from kserve.model_server import app
from kserve.utils.utils import generate_uuid


class Brightness(Model):
    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)
        self.weights = None
        self.ready = False
        self.load()

    def load(self):
        self.weights = np.full(3, 0.5)
        self.ready = True

    def preprocess(self, payload: dict | InferRequest, headers: dict[str, str] | None = None) -> np.ndarray:
        if isinstance(payload, InferRequest):
            tensor = payload.inputs[0]
            if tensor.datatype != "BYTES":
                return tensor.as_numpy()
            raw = tensor.data[0] if payload.from_grpc else base64.b64decode(tensor.data[0])
            return np.frombuffer(raw, np.uint8)
        headers["request-type"] = "v1"
        first = payload["instances"][0]
        if "data" in first:
            return np.asarray(first["data"])
        if "image" not in first:
            raise InvalidInput("invalid payload")
        return np.frombuffer(base64.b64decode(first["image"]["b64"]), np.uint8)

    def predict(self, pixels: np.ndarray, headers=None, response_headers=None):
        start = time.time()
        result = [float(value) for value in pixels[:3] * self.weights]
        if response_headers is not None:
            response_headers.update({"prediction-time-latency": f"{(time.time() - start) * 1000:.9f}"})
        if headers.get("request-type") == "v1":
            return {"predictions": result, "pid": os.getpid()}
        output = InferOutput(name="output-0", shape=[3], datatype="FP32", data=result)
        return InferResponse(model_name=self.name, infer_outputs=[output], response_id=generate_uuid())


parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--greeting", default="hello")
args, _ = parser.parse_known_args()


async def greet(request):
    return JSONResponse({"says": args.greeting})


if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = Brightness(args.model_name)
    model.load()
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_credentials=True, allow_methods=["*"], allow_headers=["*"]
    )
    app.add_route("/greeting", greet)
    logger.info("starting with %d workers", args.workers)
    ModelServer().start([model])
