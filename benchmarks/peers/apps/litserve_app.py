"""LitServe, which reads the JSON and leaves the rest of the format to its user."""

import litserve
import models
import v2json
from fastapi import Response


class Bench(litserve.LitAPI):
    def setup(self, device):
        self.model, self.weights = models.make(), models.weights()

    def decode_request(self, request):
        return v2json.to_array(request)

    def batch(self, arrays):
        return arrays

    def unbatch(self, answers):
        return answers

    def predict(self, x):
        return models.joined(self.model, x) if models.BATCH else self.model(x)

    def encode_response(self, y):
        return Response(v2json.encode(y), media_type="application/json")


if __name__ == "__main__":
    batching = {"max_batch_size": models.BATCH, "batch_timeout": models.BATCH_DELAY} if models.BATCH else {}
    server = litserve.LitServer(
        Bench(api_path="/v2/models/bench/infer", **batching),
        accelerator="cpu",
        workers_per_device=models.WORKERS,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=models.PORT,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
