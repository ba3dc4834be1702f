"""A transformer in the manner of KServe's custom_tokenizer: a file named by a flag, several tensors, answers by position."""

import argparse
from pathlib import Path

import kserve
import numpy as np
from kserve import InferInput, InferRequest, InferResponse, ModelServer, logging, model_server


class Tokenizer(kserve.Model):
    def __init__(self, name: str):
        super().__init__(name)
        self.words = Path(args.vocab_file).read_text().split()
        self.ready = True

    def preprocess(self, payload: dict | InferRequest, headers=None) -> dict | InferRequest:
        ids = np.array([[self.words.index(word) for word in payload["instances"][0].split()]], dtype=np.int32)
        mask = np.ones_like(ids)
        return InferRequest(
            model_name=self.name,
            infer_inputs=[
                InferInput(name="input_ids", datatype="INT32", shape=list(ids.shape), data=ids),
                InferInput(name="input_mask", datatype="INT32", shape=list(mask.shape), data=mask),
            ],
        )

    def postprocess(self, infer_response: dict | InferResponse, headers=None) -> dict | InferResponse:
        best, score = infer_response.outputs[0].data, infer_response.outputs[1].data
        return {"predictions": self.words[best[0]], "prob": score[0] * 100.0}


parser = argparse.ArgumentParser(parents=[model_server.parser])
parser.add_argument("--vocab_file", help="The words, one a line.")
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    ModelServer().start([Tokenizer(args.model_name)])
