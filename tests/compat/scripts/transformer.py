"""A transformer in the manner of KServe's custom_transformer: V1 or V2 in, the predictor's protocol behind it."""

import argparse
import base64

import numpy
from kserve import InferInput, InferRequest, InferResponse, Model, ModelServer, logging, model_server
from kserve.model import PredictorProtocol


def pixels(data) -> numpy.ndarray:
    return numpy.frombuffer(base64.b64decode(data), numpy.uint8).astype(numpy.float32)


class PixelTransformer(Model):
    def __init__(self, name: str):
        super().__init__(name, return_response_headers=True)
        self.ready = True

    def preprocess(self, payload: dict | InferRequest, headers=None) -> dict | InferRequest:
        if isinstance(payload, InferRequest):
            tensors = [pixels(instance) for instance in payload.inputs[0].data]
        else:
            headers["request-type"] = "v1"
            tensors = [pixels(instance["image"]["b64"]) for instance in payload["instances"]]
        if self.predictor_config.predictor_protocol == PredictorProtocol.REST_V1.value:
            return {"instances": [{"data": tensor.tolist()} for tensor in tensors]}
        tensors = numpy.asarray(tensors[0])
        inputs = [InferInput(name="INPUT__0", datatype="FP32", shape=list(tensors.shape), data=tensors)]
        return InferRequest(model_name=self.name, infer_inputs=inputs)

    def postprocess(
        self, infer_response: dict | InferResponse, headers=None, response_headers=None
    ) -> dict | InferResponse:
        if headers.get("request-type") != "v1":
            return infer_response
        if self.predictor_config.predictor_protocol == PredictorProtocol.REST_V1.value:
            return infer_response
        return {"predictions": infer_response.outputs[0].as_numpy().tolist()}


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    ModelServer(workers=1).start([PixelTransformer(args.model_name)])
