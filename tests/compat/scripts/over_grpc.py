"""A predictor that answers gRPC with a dict of contents, as KServe's custom_model/model_grpc.py does."""

import argparse

import numpy as np
from kserve import InferRequest, Model, ModelServer, logging, model_server
from kserve.model import ModelInferRequest
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelInferResponse
from kserve.utils.utils import generate_uuid


class Doubling(Model):
    def __init__(self, name: str):
        super().__init__(name)
        self.load()
        self.factor = None
        self.ready = False

    def load(self):
        self.factor = 2
        self.ready = True

    def preprocess(self, payload: InferRequest | ModelInferRequest, headers=None) -> np.ndarray:
        tensor = payload.inputs[0]
        return np.frombuffer(tensor.data[0], np.uint8) if tensor.datatype == "BYTES" else tensor.as_numpy()

    def predict(self, values: np.ndarray, headers=None) -> dict | ModelInferResponse:
        return {
            "id": generate_uuid(),
            "model_name": "doubling",
            "outputs": [
                {
                    "contents": {"fp32_contents": (self.factor * values).flatten().tolist()},
                    "datatype": "FP32",
                    "name": "output-0",
                    "shape": list(values.shape),
                }
            ],
        }


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = Doubling("doubling")
    model.load()
    ModelServer().start([model])
