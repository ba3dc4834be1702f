"""Steps of an inference graph, as KServe's test resources have them: one answers, one chooses the status 404."""

import argparse

import kserve
from fastapi import HTTPException
from kserve import InferResponse, logging


class Node(kserve.Model):
    def __init__(self, name: str):
        super().__init__(name)
        self.name = name
        self.load()

    def load(self):
        self.ready = True

    def predict(self, payload, headers=None) -> dict | InferResponse:
        return {"predictions": [{"message": "SUCCESS"}]}


class Missing(Node):
    def predict(self, payload, headers=None) -> dict | InferResponse:
        raise HTTPException(status_code=404, detail="Intentional 404 code")


parser = argparse.ArgumentParser(parents=[kserve.model_server.parser])
args, _ = parser.parse_known_args()
if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    server = kserve.ModelServer(workers=args.workers)
    node = Node(name=args.model_name)
    server.register_model(node, "alias")
    server.start([node, Missing("missing")])
