"""What KServe's example files are run with: a server process of each, requests to it, and what stands in for libraries."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import grpc
import joblib
from google.protobuf.json_format import ParseDict

from mpserve import InferResponse
from mpserve.protocol.protobuf import inference_pb2 as pb

STAND_INS = Path(__file__).resolve().parent / "stand_ins"
LIBRARIES = ("PIL", "art", "jpmml_evaluator", "lightgbm", "paddle", "ray", "six", "torchvision", "xgboost")
START_SECONDS, STOP_SECONDS = 180, 60


class Failed(Exception):
    """A file was not served or not answered as it should be; the message says how."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process, and the ways to ask the model in it."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path, model: str) -> None:
        self.http, self.grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
        ports = [f"--http_port={self.http.split(':')[1]}", f"--grpc_port={self.grpc.split(':')[1]}"]
        with log.open("wb") as lines:
            self.process = subprocess.Popen([*command, *ports], env=environment, stdout=lines, stderr=lines)
        self.log = log
        self.model = model

    def wait_until_ready(self) -> int:
        """How many workers it has, once it says that it is ready."""
        for _ in range(10 * START_SECONDS):
            if self.process.poll() is not None:
                raise Failed(f"the server ended with code {self.process.returncode}:\n{self.log.read_text()}")
            with contextlib.suppress(OSError):  # refused, reset, timed out, or 503
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5).close()
                metrics = urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5).read().decode()
                return sum(map(int, re.findall(r"^mpserve_workers\{.*\} (\d+)", metrics, re.MULTILINE)))
            time.sleep(0.1)
        raise Failed(f"the server was not ready within {START_SECONDS} s:\n{self.log.read_text()}")

    def stop(self) -> None:
        """End it gracefully; kill it if that takes too long."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and decoded answer."""
        request = urllib.request.Request(f"http://{self.http}{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def infer(self, path: str, body: Any) -> Any:
        status, answer = self.post(f"/{path}", body)
        if status != 200:
            raise Failed(f"{path} answered {status}: {answer}\n{self.log.read_text()}")
        return answer

    def v1(self, body: Any) -> Any:
        return self.infer(f"v1/models/{self.model}:predict", body)["predictions"]

    def v2(self, body: Any) -> Any:
        """The first output, by way of HTTP."""
        return InferResponse.from_rest(self.infer(f"v2/models/{self.model}/infer", body)).outputs[0].as_numpy()

    def call(self, body: Any) -> Any:
        """The first output, by way of gRPC; the body is in protobuf's JSON."""
        request = ParseDict({**body, "model_name": self.model}, pb.ModelInferRequest())
        with grpc.insecure_channel(self.grpc) as channel:
            ask = channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            try:
                return InferResponse.from_grpc(ask(request, timeout=60)).outputs[0].as_numpy()
            except grpc.RpcError as error:
                raise Failed(f"ModelInfer answered {error}\n{self.log.read_text()}") from error


class Lab:
    """What the files are tried with: the checkout and its requests, model files, stand-ins; in a folder that goes away."""

    def __init__(self, kserve: Path, folder: Path) -> None:
        self.python = kserve / "python"
        self.requests = kserve / "test" / "e2e" / "data"
        self.models = folder / "models"
        self.logs = folder / "logs"
        self.logs.mkdir()
        self.libraries = folder / "libraries"
        self.libraries.mkdir()
        self.stood_in = [name for name in LIBRARIES if name == "torchvision" or find_spec(name) is None]
        for name in self.stood_in:
            source = next(STAND_INS.glob(f"{name}*"))
            (self.libraries / source.name).symlink_to(source)
        self._workers: list[tuple[str, int]] = []

    def request(self, name: str) -> Any:
        return json.loads((self.requests / f"{name}.json").read_bytes())

    def example(self, name: str, folder: str) -> Path:
        """A copy of one of KServe's model files, in a folder that is itself the only one in its folder."""
        return shutil.copytree(self.python / folder, self.models / name / "model", dirs_exist_ok=True)

    def trained(self, name: str, estimator: Any) -> Path:
        """The same with a model of scikit-learn's, whose files are for its own version only."""
        folder = self.models / name / "model"
        folder.mkdir(parents=True, exist_ok=True)
        joblib.dump(estimator, folder / "model.joblib")
        return folder

    def workers(self, file: str) -> set[int]:
        """How many workers the servers of this file, or of this package, had."""
        return {workers for instance, workers in self._workers if instance.startswith(file)}

    @contextlib.contextmanager
    def serve(self, file: str, model: str, *flags: str, workers: int = 2, ready: bool = True) -> Iterator[Server]:
        """The file, served under the model's name until the block is left."""
        # Beside the stand-ins the servers that predictiveserver builds on, which are installed with it.
        packages = [self.python / name for name in ("sklearnserver", "xgbserver", "lgbserver")]
        path = [*map(str, [self.libraries, *packages]), *filter(None, [os.environ.get("PYTHONPATH")])]
        # No byte code: the checkout is left as it was found.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MPSERVE_", "GUNICORN_"))
        }
        environment |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_ENABLE_GRPC": "yes"}
        command = [sys.executable, "-m", "mpserve", "serve", str(self.python / file), f"--model_name={model}"]
        command += [f"--workers={workers}", "--kserve_names", *flags]
        log = self.logs / str(len(list(self.logs.iterdir())))
        server = Server(command, environment, log, model)
        try:
            if ready:
                self._workers.append((file, server.wait_until_ready()))
            yield server
        finally:
            server.stop()
        if ready and server.process.returncode:
            raise Failed(f"stopped, it ended with code {server.process.returncode}:\n{log.read_text()}")
