"""The payload log of a real server: every event at a real sink, in files, and never in the way of a request."""

import base64
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote  # which CloudEvents over HTTP asks for, and the SDK leaves to its user

import orjson
from cloudevents.v1.http import CloudEvent, from_http

from mpserve.serving.inference.payload_sinks import Event, FileSink
from tests.running import eventually, serving

SOURCE = """
import numpy as np
from mpserve import Tensor, TensorModel

class Double(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)
    def predict(self, x):
        if x[0] < 0:
            raise RuntimeError("boom")
        return 2 * x
"""
PREFIX = "org.kubeflow.serving.inference."
JSON = b'{"instances": [1.5, 2.5]}'
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
BINARY_HEAD = orjson.dumps({"inputs": [TENSOR], "parameters": {"binary_data_output": True}})
BINARY = BINARY_HEAD + b"\x00\x00\x80\x3f"


class Sink(ThreadingHTTPServer):
    """Keeps what it gets, as the CloudEvents SDK reads it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.events: list[CloudEvent] = []
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                sink.events.append(from_http(dict(self.headers.items()), body, data_unmarshaller=bytes))
                self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def test_requests_and_answers_come_to_the_sink_as_kserves_events(tmp_path: Path) -> None:
    with Sink() as sink:
        flags = (
            f"--log_url=http://127.0.0.1:{sink.server_port}/in?x=1",
            "--log_attributes=inferenceservicename=iris,source=urn:iris",
        )
        with serving(tmp_path, SOURCE, "--workers=2", *flags) as server:
            server.wait_ready()
            post = server.client.post
            asked = {
                "good": post("/v1/models/m:predict", content=JSON, headers={"x-request-id": "good"}),
                "bad": post("/v1/models/m:predict", content=b'{"instances": [-1]}', headers={"x-request-id": "bad"}),
                "broken": post("/v1/models/m:predict", content=b"{", headers={"x-request-id": "broken"}),
                "binary": post(
                    "/v2/models/m/infer", content=BINARY,
                    headers={"x-request-id": "binary", "inference-header-content-length": str(len(BINARY_HEAD))},
                ),
            }  # fmt: skip
            assert {name: answer.status_code for name, answer in asked.items()} == {
                "good": 200, "bad": 500, "broken": 400, "binary": 200
            }  # fmt: skip
            eventually(lambda: len(sink.events) == 6, within=20)
            eventually(lambda: server.metric('mpserve_payloads_total{outcome="sent"}') == 6, within=20)
        events = {(event["id"], event["type"].removeprefix(PREFIX)): event for event in sink.events}
        sent = {"good": JSON, "bad": b'{"instances": [-1]}', "broken": b"{", "binary": BINARY}
        assert {key: event.data for key, event in events.items()} == {
            **{(name, "request"): body for name, body in sent.items()},
            **{(name, "response"): asked[name].content for name in ("good", "binary")},
        }
        assert {(event["inferenceservicename"], event["source"]) for event in sink.events} == {("iris", "urn:iris")}
        lengths = [json.loads(unquote(events["binary", kind]["metadata"])) for kind in ("request", "response")]
        assert lengths == [
            {"inference-header-content-length": [answer.headers["inference-header-content-length"]]}
            for answer in (asked["binary"].request, asked["binary"])
        ]


def test_a_sink_that_does_not_answer_holds_up_neither_a_request_nor_a_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with serving(tmp_path, SOURCE, f"--log_url={url}", "--log_mode=request") as server:
            server.wait_ready()
            assert {server.predict("m", [1]).status_code for _ in range(1100)} == {200}
            eventually(lambda: server.metric('mpserve_payloads_total{outcome="dropped"}') > 0, within=20)
            server.stop()  # in no more than two seconds


def test_files_have_a_line_for_each_event_and_are_rotated(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, f"--log_url=file://{tmp_path}/logs", "--log_mode=response") as server:
        server.wait_ready()
        assert server.client.post("/v1/models/m:predict", content=JSON).status_code == 200
    [line] = (tmp_path / "logs" / "payloads-0.jsonl").read_text().splitlines()
    assert json.loads(line)["data"] == {"predictions": [3.0, 5.0]}

    sink = FileSink(tmp_path / "small", 3, size=2000)
    bodies: dict[bytes, dict[str, Any]] = {
        b'{\n"a": 12345678901234567890123}\r\n': {"data": {"a": 12345678901234567890123}},
        b"{": {"data_base64": base64.b64encode(b"{").decode()},
        b"\xff": {"data_base64": base64.b64encode(b"\xff").decode()},
    }
    for body, expected in bodies.items():
        sink.send(Event({"id": "1"}, "application/json", body))
        [*_, line] = (tmp_path / "small" / "payloads-3.jsonl").read_text().splitlines()
        assert json.loads(line) == {"id": "1", "datacontenttype": "application/json", **expected}
    for _ in range(400):
        sink.send(Event({"id": "1"}, None, b"x" * 90))
    sink.close()
    sizes = [file.stat().st_size for file in (tmp_path / "small").iterdir()]
    assert len(sizes) == 4
    assert max(sizes) <= 2000
