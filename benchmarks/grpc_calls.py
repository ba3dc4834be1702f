"""What a small ModelInfer costs in CPU, against an echo on bare grpc.aio, and against kserve, in the same run.

    python benchmarks/grpc_calls.py [ROUNDS]

One process answers, pinned to one core; the client is on another, with 16 calls in flight. The figure is the CPU time of the
whole server tree per call (/proc/PID/stat); rounds are interleaved, and the median counts. The echo parses no message: it
gives back the bytes that it gets. kserve is measured where ``python -m benchmarks.peers install kserve`` has installed it. Exits
with 1 when mpserve needs more than twice the echo's, or more than kserve's.
"""

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
from peers.environments import is_installed, program

from mpserve.protocol.protobuf import inference_pb2 as pb

LIMIT = 2.0
IN_FLIGHT = 16
WARM, CALLS = 2_000, 8_000
METHOD = "/inference.GRPCInferenceService/ModelInfer"
VALUES = np.arange(4, dtype=np.float32)

MODEL = """
from mpserve import TensorModel

class Echo(TensorModel):
    name = "echo"
    def predict(self, x):
        return {"y": x}
"""
BARE = f"""
import asyncio, sys, grpc

async def echo(data, context):
    return data

class Handler(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(echo) if details.method == "{METHOD}" else None

async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    server.add_insecure_port(f"127.0.0.1:{{sys.argv[1]}}")
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""
KSERVE = """
import sys, kserve
from kserve import logging

for name in ("kserve", "kserve.trace", "uvicorn.access"):
    logging.KSERVE_LOG_CONFIG["loggers"][name]["level"] = "WARNING"

class Echo(kserve.Model):
    def __init__(self):
        super().__init__("echo")
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        output = kserve.InferOutput("y", [1, 4], "FP32")
        output.set_data_from_numpy(payload.inputs[0].as_numpy(), binary_data=True)
        return kserve.InferResponse(payload.id, "echo", [output])

kserve.ModelServer(grpc_port=int(sys.argv[1]), http_port=int(sys.argv[2]), enable_latency_logging=False).start([Echo()])
"""


def request() -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    message = pb.ModelInferRequest(model_name="echo", inputs=[tensor], raw_input_contents=[VALUES.tobytes()])
    return message.SerializeToString()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in tree(int(child)))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its descendants."""
    ticks = 0
    for each in tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pin(pid: int, cpu: int) -> None:
    for each in tree(pid):
        for thread in Path(f"/proc/{each}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {cpu})


async def drive(port: int, calls: int, check: bool) -> None:
    data = request()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        answer = await call(data, wait_for_ready=True, timeout=60)
        if check:
            assert pb.ModelInferResponse.FromString(answer).raw_output_contents[0] == VALUES.tobytes()

        async def one_after_the_other() -> None:
            for _ in range(calls // IN_FLIGHT):
                await call(data)

        await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))


def measure(folder: Path, name: str) -> float:
    """Microseconds of the server's CPU time per call."""
    port = free_port()
    command = {
        "grpc.aio": [sys.executable, "bare.py", str(port)],
        "mpserve": [
            sys.executable, "-m", "mpserve", "serve", "model.py",
            f"--grpc_port={port}", f"--http_port={free_port()}", "--host=127.0.0.1",
        ],
        "kserve": [program("kserve"), "sdk.py", str(port), str(free_port())],
    }[name]  # fmt: skip
    server = subprocess.Popen(command, cwd=folder, env=os.environ | {"MPSERVE_LOG_LEVEL": "warning"})
    try:
        asyncio.run(drive(port, WARM, check=name != "grpc.aio"))
        pin(server.pid, 0)
        before, start = cpu_seconds(server.pid), time.monotonic()
        asyncio.run(drive(port, CALLS, check=name != "grpc.aio"))
        spent, seconds = cpu_seconds(server.pid) - before, time.monotonic() - start
        print(f"  {name:10s} {spent / CALLS * 1e6:6.0f} µs of CPU per call  {CALLS / seconds:6.0f} calls/s")
        return spent / CALLS * 1e6
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"grpcio {grpc.__version__}, {IN_FLIGHT} calls in flight, a tensor [1, 4]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.py").write_text(MODEL)
        (folder / "bare.py").write_text(BARE)
        (folder / "sdk.py").write_text(KSERVE)
        names = ["grpc.aio", "mpserve", *(["kserve"] if is_installed("kserve") else [])]
        results = [[measure(folder, name) for name in names] for _ in range(rounds)]
    bare, ours, *kserves = map(statistics.median, zip(*results, strict=True))
    print(f"mpserve needs {ours / bare:.2f} times the CPU of a bare echo (at most {LIMIT:g})")
    for kserve in kserves:
        print(f"kserve needs {kserve / ours:.2f} times the CPU of mpserve (at least 1)")
    sys.exit(0 if ours <= LIMIT * bare and all(ours <= kserve for kserve in kserves) else 1)


if __name__ == "__main__":
    main()
