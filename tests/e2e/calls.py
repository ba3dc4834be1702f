"""gRPC calls of a server in other processes, each on a connection of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.running import Server, free_port, serving

PID = """
import os, time
from mpserve import Tensor, TensorModel
import numpy as np

class Pid(TensorModel):
    name = "m"
    inputs = (Tensor("seconds", "FP64", (1,)),)
    outputs = (Tensor("pid", "INT64", (1,)),)
    def predict(self, seconds):
        open("begun", "a").close()
        time.sleep(float(seconds[0]))
        return np.array([os.getpid()])
"""


@contextmanager
def speaking(
    folder: Path, *flags: str, source: str = PID, target: str = "model.py", **more: Any
) -> Iterator[tuple[Server, str]]:
    """A server that speaks gRPC, and its address."""
    port = free_port()
    flags = ("--enable_grpc=yes", f"--grpc_port={port}", *flags)
    with serving(folder, source, *flags, target=target, **more) as server:
        yield server, f"127.0.0.1:{port}"


def call(address: str, method: str, request: Any, answer: Any, **options: Any) -> Any:
    """One call on a channel of its own, so that any worker may get it."""
    # Channels to one address share a connection otherwise.
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return stub(request, **{"timeout": 30, **options})


def infer(address: str, seconds: float = 0.0) -> int:
    request = pb.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="seconds", datatype="FP64", shape=[1])
    tensor.contents.fp64_contents.append(seconds)
    return int(call(address, "ModelInfer", request, pb.ModelInferResponse).outputs[0].contents.int64_contents[0])
