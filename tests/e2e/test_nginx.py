"""deploy/nginx in a real nginx before a real server: nothing is held back, cut or lost, and nobody manages through it."""

import http.client
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpserve.config.settings import Settings
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, infer, speaking
from tests.e2e.steered import Traffic, let
from tests.e2e.test_grpc_under_signals import Calls
from tests.nginx import CONFIGURATION, Nginx, needs_nginx, nginx_before
from tests.running import PATIENCE, Server, eventually

SOURCE = """
import os, time
from pathlib import Path
import numpy as np
from mpserve import Model, Tensor, TensorModel

class Pid(TensorModel):
    name = "m"
    inputs = (Tensor("seconds", "FP64", (-1,)),)
    outputs = (Tensor("pid", "INT64", (1,)), )

    def predict(self, seconds):
        return np.array([os.getpid()])

class Length(TensorModel):
    name = "length"
    inputs = (Tensor("x", "UINT8", (-1,)),)
    outputs = (Tensor("bytes", "INT64", (1,)),)

    def predict(self, x):
        return np.array([x.nbytes])

def parts():
    for number in range(3):
        while number and not Path(f"go-{number}").exists():
            time.sleep(0.01)
        yield f"part {number}"

class Lines(Model):
    def predict(self, payload, headers=None):
        yield from parts()

class Parts(TensorModel):
    name = "parts"
    inputs = (Tensor("text_input", "BYTES", (1,)),)
    outputs = (Tensor("text_output", "BYTES", (1,)),)

    def predict(self, text_input):
        for part in parts():
            yield np.array([part.encode()], dtype=object)

models = [Pid(), Length(), Lines("lines"), Parts()]
"""


class Served(NamedTuple):
    server: Server
    grpc: str
    nginx: Nginx
    folder: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("nginx")
    flag, why = "--workers=2", "a worker waits for a second after its last call of gRPC"
    with speaking(folder, flag, source=SOURCE, target="model.py:models", slow_stop=why) as (server, address):
        server.wait_ready(workers=2)
        with nginx_before(folder, server.port, int(address.rpartition(":")[2])) as nginx:
            yield Served(server, address, nginx, folder)


pytestmark = needs_nginx


def number(name: str, text: str) -> int:
    """The value of a directive in bytes or seconds."""
    (found,) = re.findall(rf"^\s*{name} (\d+)[ms];", text, re.MULTILINE)
    return int(found)


def test_its_limits_are_those_of_the_server() -> None:
    over_http, over_grpc = re.split(r"^server \{", CONFIGURATION.read_text(), flags=re.MULTILINE)[1:]
    assert number("client_max_body_size", over_http) << 20 == Settings.max_body_size
    assert number("proxy_read_timeout", over_http) >= Settings.stuck_timeout
    assert number("grpc_read_timeout", over_grpc) >= Settings.stuck_timeout
    assert Settings.timeout_keep_alive > 60  # nginx's keepalive_timeout of an upstream
    of_grpc = CONFIGURATION.read_text().partition("upstream mpserve_grpc")[2].partition("}")[0]
    oldest = number("keepalive_time", of_grpc) + number("keepalive_timeout", of_grpc)
    assert (
        oldest < 0.9 * Settings.grpc_max_connection_age
    )  # at whose end the server closes a connection, more or less a tenth


def test_health_metrics_and_requests_pass(served: Served) -> None:
    with httpx.Client(base_url=served.nginx.url, timeout=PATIENCE) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert "mpserve_requests_total" in client.get("/metrics").text
        answer = client.post("/v1/models/m:predict", json={"instances": [0]})
        assert answer.json()["predictions"][0] in served.server.workers()
    assert infer(served.nginx.grpc) in served.server.workers()
    with grpc.insecure_channel(served.nginx.grpc) as channel:
        asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert asked.status == health_pb2.HealthCheckResponse.SERVING


@contextmanager
def parts_over_http(nginx: Nginx, path: str, body: object, pattern: str) -> Iterator[Iterator[str]]:
    with httpx.stream("POST", f"{nginx.url}{path}", json=body, timeout=PATIENCE) as response:
        assert response.status_code == 200
        yield (found for text in response.iter_text() for found in re.findall(pattern, text))


@contextmanager
def parts_over_grpc(nginx: Nginx) -> Iterator[Iterator[str]]:
    request = pb.ModelInferRequest(model_name="parts")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"x")
    with grpc.insecure_channel(nginx.grpc) as channel:
        stub = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        answers = stub(iter([request]), timeout=PATIENCE)
        yield (
            text.decode()
            for answer in answers
            for text in re.findall(rb"part \d", answer.infer_response.SerializeToString())
        )


@pytest.mark.parametrize("kind", ["chunked", "events", "gRPC"])
def test_each_part_arrives_before_the_next_is_made(served: Served, kind: str) -> None:
    for part in (1, 2):
        (served.folder / f"go-{part}").unlink(missing_ok=True)
    opened = {
        "chunked": lambda: parts_over_http(served.nginx, "/v1/models/lines:predict", {"instances": ["x"]}, r"part \d"),
        "events": lambda: parts_over_http(
            served.nginx, "/v2/models/parts/generate_stream", {"text_input": "x"}, r"part \d"
        ),
        "gRPC": lambda: parts_over_grpc(served.nginx),
    }[kind]
    with opened() as parts:
        assert next(parts) == "part 0"
        for part in (1, 2):
            let(served.folder, f"go-{part}")
            assert next(parts) == f"part {part}"
        assert list(parts) == []


def test_a_large_body_passes_and_one_that_the_server_would_refuse_does_not(served: Served) -> None:
    size = 40 << 20
    head = (
        b'{"inputs": [{"name": "x", "shape": [%d], "datatype": "UINT8", "parameters": {"binary_data_size": %d}}]}'
        % (size, size)
    )
    answer = httpx.post(
        f"{served.nginx.url}/v2/models/length/infer",
        content=head + bytes(size),
        headers={"inference-header-content-length": str(len(head))},
        timeout=PATIENCE,
    )
    assert answer.json()["outputs"][0]["data"] == [size]
    request = pb.ModelInferRequest(model_name="length", raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="UINT8", shape=[size])
    (raw,) = call(served.nginx.grpc, "ModelInfer", request, pb.ModelInferResponse).raw_output_contents
    assert np.frombuffer(raw, np.int64).tolist() == [size]
    connection = http.client.HTTPConnection("127.0.0.1", served.nginx.port, timeout=PATIENCE)
    connection.putrequest("POST", "/v2/models/length/infer")
    connection.putheader("Content-Length", str(Settings.max_body_size + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("path", ["repository/models/m/load", "repository/models/m/unload", "logging"])
def test_nobody_manages_the_server_through_it_not_even_from_the_same_host(served: Served, path: str) -> None:
    answer = httpx.post(f"{served.nginx.url}/v2/{path}", json={}, timeout=PATIENCE)
    assert (answer.status_code, "x-forwarded-for" in answer.text) == (403, True), answer.text
    load = "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"), pb.RepositoryModelLoadResponse
    with pytest.raises(grpc.RpcError) as refused:
        call(served.nginx.grpc, *load)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    call(served.grpc, *load)
    assert httpx.get(f"{served.nginx.url}/v2/models/m/ready", timeout=PATIENCE).status_code == 200


def test_a_hup_behind_it_loses_nothing(served: Served) -> None:
    with Traffic(served.nginx, what=0) as traffic, Calls(served.nginx.grpc) as calls:
        old = set(served.server.workers())
        served.server.signal(signal.SIGHUP)
        eventually(lambda: not old & set(served.server.workers()))
        traffic.flow(20)
        calls.flow()
    assert not traffic.losses
    assert not calls.losses
