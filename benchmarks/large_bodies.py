"""How much memory large bodies cost: one worker, 16 requests at once, each of 64 MiB in and 64 MiB out.

    python benchmarks/large_bodies.py [MEBIBYTES]

The model answers with a copy of its input when all 16 are there, so that all bodies, in and out, are in flight together. The
figure is the worker's peak (VmHWM of /proc/PID/status, reset before) less what it had after a first request, and that as a
multiple of the bytes in flight. Exits with 1 when it is more than 3 over HTTP; gRPC is printed beside it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from mpserve.protocol.protobuf import inference_pb2 as pb

LIMIT = 3.0
AT_ONCE = 16
ROUNDS = 2
MIB = 2**20
PIECE = MIB
MODEL = f"""
import threading
from mpserve import Tensor, TensorModel

class Identity(TensorModel):
    name = "identity"
    inputs = (Tensor("x", "UINT8", (-1,)),)
    outputs = (Tensor("y", "UINT8", (-1,)),)
    concurrency = {AT_ONCE}
    def load(self):
        self.all_there = threading.Barrier({AT_ONCE})
    def predict(self, x):
        if len(x) > 1:
            self.all_there.wait(120)
        return x.copy()
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def status(pid: int, field: str) -> int:
    """A field of /proc/PID/status that is in kB, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def head(size: int) -> bytes:
    """The JSON of a request for the bytes that follow it."""
    tensor = {"name": "x", "shape": [size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def over_http(port: int, data: memoryview) -> None:
    """Send the data and compare the answer with it, a piece at a time."""
    json_part = head(len(data))
    lines = [
        "POST /v2/models/identity/infer HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Connection: close",
        f"Content-Length: {len(json_part) + len(data)}",
        f"Inference-Header-Content-Length: {len(json_part)}",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=300) as sock, sock.makefile("rb") as answer:
        sock.sendall("\r\n".join([*lines, "", ""]).encode() + json_part)
        sock.sendall(data)
        first = answer.readline()
        assert b" 200 " in first, first
        headers = dict(line.decode().lower().strip().split(": ", 1) for line in iter(answer.readline, b"\r\n"))
        answer.read(int(headers["inference-header-content-length"]))
        for start in range(0, len(data), PIECE):
            assert answer.read(len(data[start : start + PIECE])) == data[start : start + PIECE]
        assert answer.read() == b""


def over_grpc(port: int, message: bytes, data: memoryview) -> None:
    """Send the serialized message; the answer ends with the data, which is its last field."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1)]) as channel:
        answer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message, timeout=300)
        assert answer[-len(data) :] == data


def wait_until_ready(port: int, server: "subprocess.Popen[bytes]") -> int:
    """The pid of the worker."""
    for _ in range(1200):
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60).close()
            return int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()[0])
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("the server was not ready within two minutes")


def message_of(data: memoryview) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="UINT8", shape=[len(data)])
    message = pb.ModelInferRequest(model_name="identity", inputs=[tensor], raw_input_contents=[bytes(data)])
    return message.SerializeToString()


def peak(worker: int, ask: Callable[[], None]) -> int:
    """The worker's most bytes while `ask` ran as often at once as the model waits for, so often in turn."""
    Path(f"/proc/{worker}/clear_refs").write_text("5")  # VmHWM begins anew (man 5 proc)
    with ThreadPoolExecutor(AT_ONCE) as clients:
        for _ in range(ROUNDS):
            list(clients.map(lambda _: ask(), range(AT_ONCE)))
    return status(worker, "VmHWM")


def report(what: str, grown: int, in_flight: int) -> float:
    print(f"  {what:5}{grown / MIB:7.0f} MiB   {grown / in_flight:.2f} times the bytes in flight", flush=True)
    return grown / in_flight


def main() -> None:
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 64) * MIB
    data = memoryview(os.urandom(size))
    in_flight = AT_ONCE * 2 * size
    port, grpc_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.py")
        model.write_text(MODEL)
        flags = [f"--http_port={port}", f"--grpc_port={grpc_port}", "--workers=1", "--enable_grpc=yes"]
        environment = os.environ | {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_LOG_LEVEL": "warning"}
        server = subprocess.Popen([sys.executable, "-m", "mpserve", "serve", str(model), *flags], env=environment)
        try:
            worker = wait_until_ready(port, server)
            print(f"{AT_ONCE} requests at once, each {size // MIB} MiB in and out; by how much the worker grows")
            over_http(port, data[:1])
            over_grpc(grpc_port, message_of(data[:1]), data[:1])
            before = status(worker, "VmRSS")
            ratio = report("HTTP", peak(worker, lambda: over_http(port, data)) - before, in_flight)
            message = message_of(data)
            report("gRPC", peak(worker, lambda: over_grpc(grpc_port, message, data)) - before, in_flight)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    sys.exit(0 if ratio <= LIMIT else 1)


if __name__ == "__main__":
    main()
