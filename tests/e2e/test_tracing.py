"""Traces of real servers at a real receiver: whole over two servers, chosen by clients, and no burden to a stop."""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each
from tests.e2e.calls import call, speaking
from tests.otlp import Receiver, Span, receiving
from tests.running import Server, eventually, serving

PREDICTOR = """
from opentelemetry import trace
from mpserve import Tensor, TensorModel

class Predictor(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)
    max_batch_size, max_batch_delay = 2, 30

    def load(self):
        with trace.get_tracer("mine").start_as_current_span("weights"):
            pass

    def predict(self, x):
        return 2 * x
"""

TRANSFORMER = """
from mpserve import Model

class Transformer(Model):
    name = "m"
    def preprocess(self, payload, headers=None):
        return payload
"""

WAYS = """
from opentelemetry import trace
from mpserve import InvalidInput, Model

class Ways(Model):
    name = "m"
    def predict(self, payload, headers=None):
        word = payload["instances"][0]
        with trace.get_tracer("mine").start_as_current_span(f"mine {word}"):
            if word == "fail":
                raise RuntimeError("boom")
            if word == "refuse":
                raise InvalidInput("no cat")
        return {"predictions": [word]} if word != "parts" else iter(["a", "b"])
"""

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_, TRACE, PARENT, _ = CLIENT.split("-")
INPUT = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}


def environment(receiver: Receiver, service: str, **more: str) -> dict[str, str]:
    """A schedule of an hour: only the drain of a worker sends spans."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, "OTEL_SERVICE_NAME": service, "OTEL_BSP_SCHEDULE_DELAY": "3600000",
        **more,
    }  # fmt: skip


def over_http(server: Server, address: str, headers: dict[str, str]) -> Any:
    answer = httpx.post(f"{server.url}/v2/models/m/infer", json={"inputs": [INPUT]}, headers=headers, timeout=60)
    return answer.json()["outputs"][0]["data"]


def over_grpc(server: Server, address: str, headers: dict[str, str]) -> Any:
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)
    answer = call(address, "ModelInfer", request, pb.ModelInferResponse, metadata=list(headers.items()))
    return list(answer.outputs[0].contents.fp32_contents)


@each("protocol, ask", [("v2", over_http), ("grpc-v2", over_grpc)])
def test_a_batched_request_through_a_transformer_is_one_trace(tmp_path: Path, protocol: str, ask: Any) -> None:
    """Two requests share a batch: that of a client that traces, and one that begins a trace."""
    folders = tmp_path / protocol / "predictor", tmp_path / protocol / "transformer"
    for folder in folders:
        folder.mkdir(parents=True)
    logs = ("--access_log", "--log_format=json")
    with receiving() as receiver:
        with (
            speaking(folders[0], *logs, source=PREDICTOR, env=environment(receiver, "behind")) as (predictor, grpc),
            speaking(
                folders[1], *logs, f"--predictor_protocol={protocol}",
                f"--predictor_host={grpc if protocol != 'v2' else f'127.0.0.1:{predictor.port}'}",
                source=TRANSFORMER, env=environment(receiver, "front"),
            ) as (transformer, address),
            ThreadPoolExecutor() as pool,
        ):  # fmt: skip
            predictor.wait_ready()
            transformer.wait_ready()
            answers = pool.map(lambda headers: ask(transformer, address, headers), ({"traceparent": CLIENT}, {}))
            assert list(answers) == [[2], [2]]
            named = {server.pid: traces_in_log(server) for server in (predictor, transformer)}
        spans = {(span.service, span.name, span.kind): span for span in receiver.spans if span.trace == TRACE}
        fronts, behinds = (
            [s for s in receiver.named("predict m") if s.service == name] for name in ("front", "behind")
        )
        assert (len(fronts), len(behinds)) == (2, 2)

        front, request = spans["front", "predict m", "server"], spans["behind", "predict m", "server"]
        asked = spans["front", "predictor m", "client"]
        assert (front.parent, asked.parent, request.parent) == (PARENT, front.id, asked.id)
        assert {span.parent for key, span in spans.items() if key[:2] == ("front", "predict")} == {front.id}
        for name in ("queue", "preprocess", "predict"):
            part = spans["behind", name, "internal"]
            assert part.parent == request.id
            assert request.begin <= part.begin <= part.end <= request.end

        [batch] = receiver.named("batch m")
        assert batch.links == {span.id for span in behinds}
        assert batch.parent in batch.links
        assert (batch.attributes["requests"], batch.attributes["rows"]) == (2, 2)
        assert {frozenset(span.links) for span in receiver.named("predict") if span.service == "behind"} == {
            frozenset({batch.id})
        }
        [load], [weights] = [s for s in receiver.named("load m") if s.service == "behind"], receiver.named("weights")
        assert (load.parent, weights.parent, weights.trace) == ("", load.id, load.trace)
        traces = {span.trace for span in fronts}
        assert named == {predictor.pid: traces, transformer.pid: traces}


def traces_in_log(server: Server) -> set[str]:
    """The traces that lines of the access log name, once there are two."""

    def named() -> set[str]:
        lines = [json.loads(line) for line in server.log.splitlines() if '"mpserve.access"' in line]
        return {line["trace_id"] for line in lines if "trace_id" in line}

    return eventually(lambda: found if len(found := named()) >= 2 else None, within=10)  # type: ignore[no-any-return]


def test_each_way_to_end_has_its_span_and_clients_choose_what_is_traced(tmp_path: Path) -> None:
    def ask(word: str, model: str = "m", **headers: str) -> int:
        return server.predict(model, [word], headers=headers).status_code

    def change(**settings: Any) -> Any:
        return server.client.post("/v2/trace/setting", json=settings).json()

    with receiving() as receiver:
        environ = environment(receiver, "ways", OTEL_TRACES_SAMPLER="parentbased_always_off")
        with serving(tmp_path, WAYS, "--workers=2", env=environ) as server:
            server.wait_ready(workers=2)
            told = server.client.get("/v2/trace/setting").json()
            assert (told["trace_level"], told["trace_mode"]) == (["OFF"], "opentelemetry")
            assert "trace" in server.client.get("/v2").json()["extensions"]
            assert ask("before") == 200

            changed = change(trace_level=["TIMESTAMPS"], trace_rate="1")
            assert changed == {**told, "trace_level": ["TIMESTAMPS"], "trace_rate": "1"}
            words = {"ok": 200, "parts": 200, "fail": 500, "refuse": 400}
            assert {word: ask(word) for word in words} == words
            assert ask("lost", model="nope") == 404
            assert ask("unsampled", traceparent=f"{CLIENT[:-1]}0") == 200

            change(trace_count="3")
            assert {ask("counted") for _ in range(8)} == {200}
            assert change()["trace_count"] == "0"
            change(trace_count=None, trace_rate=3)
            assert {server.predict("m", ["each third"]).status_code for _ in range(9)} == {200}
            change(trace_level="OFF")
            assert ask("off", traceparent=CLIENT) == 200
            assert change(trace_level=None, trace_rate=None) == told
            assert ask("by the client", traceparent=CLIENT) == 200
            for wrong, status in (
                ({"trace_rate": 0}, 400),
                ({"trace_level": ["MIN"]}, 400),
                ({"trace_file": "x"}, 501),
            ):
                assert server.client.post("/v2/models/m/trace/setting", json=wrong).status_code == status
        requests = {span.id: span for span in receiver.spans if span.kind == "server"}
        mine = {span.name.removeprefix("mine "): span for span in receiver.spans if span.name.startswith("mine ")}
        counts = Counter(span.name.removeprefix("mine ") for span in receiver.spans if span.name.startswith("mine "))

        def of(word: str) -> Span:
            return requests[mine[word].parent]

        errors = {word: (of(word).attributes.get("error.type"), of(word).failure) for word in words}
        assert errors == {
            "ok": (None, None), "parts": (None, None), "refuse": ("invalid_input", None),
            "fail": ("model_failed", "RuntimeError : boom"),
        }  # fmt: skip
        [lost] = [span for span in requests.values() if span.attributes.get("error.type") == "not_found"]
        assert (lost.name, lost.failure) == ("predict", None)
        assert (of("by the client").trace, of("by the client").parent) == (TRACE, PARENT)
        parts = {span.name for span in receiver.spans if span.parent == of("ok").id}
        assert parts == {"queue", "preprocess", "predict", "postprocess", "mine ok"}
        third = counts.pop("each third")
        assert 3 <= third <= 4  # each worker begins with its first
        assert counts == {**dict.fromkeys([*words, "by the client"], 1), "counted": 3}


def test_a_receiver_that_does_not_answer_holds_up_neither_a_request_nor_a_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "1"}
        with serving(tmp_path, WAYS, env=environ) as server:
            server.wait_ready()
            silent.settimeout(30)
            with silent.accept()[0]:
                assert server.predict("m", ["ok"]).status_code == 200
                server.stop()  # in no more than two seconds
                assert "the last spans or payloads were not sent within 0.5 s and are lost" in server.log
