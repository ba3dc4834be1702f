"""What every server serves: the identity, or a torch MLP of 128-256-10, and weights that only take memory.

A server is told what to do by its environment, so that each app is a few lines:

    BENCH_MODEL                    identity or mlp, or the path of a model file
    BENCH_BATCH                    rows of the largest batch; 0 joins no requests
    BENCH_WORKERS, BENCH_MEGABYTES worker processes, and the size (10^6 bytes) of the weights in each
    BENCH_PORT, BENCH_GRPC_PORT, BENCH_METRICS_PORT
    BENCH_FOLDER                   an empty folder of its own
"""

import os

import numpy as np

MODEL = os.environ.get("BENCH_MODEL", "identity")
MEGABYTES = int(os.environ.get("BENCH_MEGABYTES", "0"))
BATCH = int(os.environ.get("BENCH_BATCH", "0"))
BATCH_DELAY = 0.001
"""Seconds for which a server waits for a fuller batch, where it must be told a time; mpserve need not."""
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
PORT, GRPC_PORT, METRICS_PORT = (int(os.environ.get(f"BENCH_{name}PORT", "0")) for name in ("", "GRPC_", "METRICS_"))


def parameters():
    """Weight and bias of both layers, float32, always the same."""
    random = np.random.default_rng(0)
    shapes = (256, 128), (256,), (10, 256), (10,)
    return [random.uniform(-0.1, 0.1, shape).astype(np.float32) for shape in shapes]


def expected(model, x):
    """What the model answers, computed without torch."""
    if model == "identity":
        return x
    first, first_bias, second, second_bias = parameters()
    return np.maximum(x @ first.T + first_bias, 0) @ second.T + second_bias


def make():
    """The model that BENCH_MODEL names: a function from an array to an array."""
    if MODEL == "identity":
        return lambda x: x
    import torch

    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)).eval()
    with torch.no_grad():
        for parameter, values in zip(network.parameters(), parameters(), strict=True):
            parameter.copy_(torch.from_numpy(values))

    def mlp(x):
        with torch.inference_mode():
            return network(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    return mlp


def weights():
    """BENCH_MEGABYTES of memory that has been written to."""
    return np.ones(MEGABYTES * 250_000, np.float32)


def joined(model, arrays):
    """Call the model once for several requests, and give each its rows."""
    answers = model(np.concatenate(arrays))
    ends = np.cumsum([len(array) for array in arrays])
    return [answers[end - len(array) : end] for array, end in zip(arrays, ends, strict=True)]
