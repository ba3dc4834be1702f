"""Triton, taken from the pytriton package: its model repository, and the server in this process's place.

A model's rank is fixed in Triton, so there is one for each: bench2 and bench4.
"""

import os
import sys
import sysconfig
from pathlib import Path

import models

SITE = Path(sysconfig.get_path("purelib"))
TRITON = SITE / "pytriton" / "tritonserver"
CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {batch}
{batching}
input [{{ name: "x" data_type: TYPE_FP32 dims: {inputs} }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: {outputs} }}]
instance_group [{{ kind: KIND_CPU count: {workers} }}]
"""


def write_model(repository, rank):
    name = f"bench{rank}"
    free, batching = [-1] * rank, ""
    inputs = outputs = free
    if models.BATCH:
        inputs, outputs = [128], [10]
        batching = f"dynamic_batching {{ max_queue_delay_microseconds: {int(models.BATCH_DELAY * 1e6)} }}"
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").symlink_to(Path(__file__).with_name("triton_model.py"))
    (repository / name / "config.pbtxt").write_text(
        CONFIG.format(
            name=name, batch=models.BATCH, batching=batching, inputs=inputs, outputs=outputs, workers=models.WORKERS
        )
    )


def gather_backend(backends):
    """The Python backend with the stub of this Python's version beside it."""
    folder = backends / "python"
    folder.mkdir(parents=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for source in (TRITON / "backends" / "python", TRITON / "python_backend_stubs" / version):
        for file in source.iterdir():
            if file.is_file():
                (folder / file.name).symlink_to(file)


def main():
    folder = Path(os.environ["BENCH_FOLDER"])
    for rank in (2, 4) if models.MODEL == "identity" and not models.MEGABYTES else (2,):
        write_model(folder / "models", rank)
    gather_backend(folder / "backends")
    arguments = {
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": models.PORT,
        "grpc-port": models.GRPC_PORT,
        "metrics-port": models.METRICS_PORT,
        "cache-directory": TRITON / "caches",
    }
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(SITE / "nvidia_pytriton.libs"),
        "PYTHONPATH": f"{SITE}:{Path(__file__).parent}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    server = str(TRITON / "bin" / "tritonserver")
    os.execve(server, [server, *(f"--{name}={value}" for name, value in arguments.items())], environment)


if __name__ == "__main__":
    main()
