"""mosec, which leaves the format to its user: one stage of workers behind a front written in Rust."""

import sys

import models
import v2json
from mosec import Server, Worker


class Bench(Worker):
    def __init__(self):
        super().__init__()
        self.model, self.weights = models.make(), models.weights()

    def deserialize(self, data):
        return v2json.decode(data)

    def serialize(self, data):
        return v2json.encode(data)

    def forward(self, data):
        return models.joined(self.model, data) if models.BATCH else self.model(data)


if __name__ == "__main__":
    arguments = ["--address=127.0.0.1", f"--port={models.PORT}", "--log-level=warning", "--timeout=60000"]
    sys.argv = [sys.argv[0], *arguments]
    server = Server()
    server.append_worker(
        Bench, num=models.WORKERS, max_batch_size=models.BATCH or 1, max_wait_time=int(models.BATCH_DELAY * 1000)
    )
    server.run()
