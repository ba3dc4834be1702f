"""Scripts that were written for the kserve SDK, of the shapes of its examples, run as they are by ``mpserve serve``."""

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call
from tests.running import Server, eventually, free_port, running, serving

pytestmark = pytest.mark.e2e

SCRIPTS = Path(__file__).parent / "scripts"


@contextmanager
def instance(folder: Path, target: str, *flags: str, workers: int = 2, **env: str) -> Iterator[Server]:
    """The script, asked for two workers and ready, with as many as it has chosen."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mpserve", "serve", str(SCRIPTS / target), f"--http_port={port}", "--workers=2"]
    with running([*command, *flags], folder, port, env) as server:
        yield server.wait_ready(workers=workers)


def answers_of_both_workers(server: Server, path: str, body: Any, **headers: str) -> list[httpx.Response]:
    """An answer of each worker, each on a connection of its own; told apart by the ``pid`` in it."""
    answers: dict[int, httpx.Response] = {}

    def ask() -> bool:
        answer = httpx.post(f"{server.url}{path}", json=body, headers=headers, verify=False)
        answers[answer.json()["pid"]] = answer
        return len(answers) == 2

    eventually(ask)
    return list(answers.values())


def test_a_predictor_with_flags_response_headers_middleware_and_a_route_of_its_own(tmp_path: Path) -> None:
    pixels = bytes([2, 4, 6])
    image = base64.b64encode(pixels).decode()
    with instance(tmp_path, "picture.py", "--model_name=picture", "--greeting=salve") as server:
        path = "/v1/models/picture:predict"
        body = {"instances": [{"image": {"b64": image}}]}
        for answer in answers_of_both_workers(server, path, body, origin="https://example.org"):
            assert answer.json()["predictions"] == [1.0, 2.0, 3.0]
            assert answer.headers["access-control-allow-origin"] == "https://example.org"
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert float(answer.headers["prediction-time-latency"]) >= 0
        assert "starting with 2 workers" in server.log

        tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [image]}
        told = server.client.post("/v2/models/picture/infer", json={"inputs": [tensor]}).json()
        output = {"name": "output-0", "shape": [3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}
        assert (told["outputs"], len(told["id"])) == ([output], 36)

        ready = server.client.post(path, json={"instances": [{"data": [2, 4, 6]}]})
        assert ready.json()["predictions"] == [1.0, 2.0, 3.0]

        refused = server.client.post(path, json={"instances": [{}]})
        assert (refused.status_code, refused.json()) == (400, {"error": "invalid payload"})
        assert server.client.get("/greeting").json() == {"says": "salve"}
        assert server.client.get("/nowhere").json()["error"].startswith("there is no GET /nowhere")
        asking = {"origin": "https://example.org", "access-control-request-method": "POST"}
        assert server.client.options(path, headers=asking).status_code == 200


def test_a_predictor_that_answers_grpc_with_a_dict_of_contents(tmp_path: Path) -> None:
    port = free_port()
    numbers = {"datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}}
    text = {"datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [bytes([1, 2])]}}
    with instance(tmp_path, "over_grpc.py", f"--grpc_port={port}", MPSERVE_ENABLE_GRPC="yes"):
        for tensor in (numbers, text):
            request = pb.ModelInferRequest(model_name="doubling", inputs=[{"name": "x", **tensor}])
            answer = call(f"127.0.0.1:{port}", "ModelInfer", request, pb.ModelInferResponse)
            assert list(answer.outputs[0].contents.fp32_contents) == [2, 4]


@pytest.mark.parametrize("protocol", ["v1", "grpc-v2"])
def test_a_transformer_before_that_predictor(tmp_path: Path, protocol: str) -> None:
    grpc_port = free_port()
    name = "--model_name=picture"
    with instance(
        tmp_path / "predictor", "picture.py", name, f"--grpc_port={grpc_port}", MPSERVE_ENABLE_GRPC="yes"
    ) as predictor:
        host = f"127.0.0.1:{grpc_port if protocol == 'grpc-v2' else predictor.port}"
        asking = (f"--predictor_host={host}", f"--predictor_protocol={protocol}")
        with instance(tmp_path / "transformer", "transformer.py", name, *asking, workers=1) as server:
            image = base64.b64encode(bytes([2, 4, 6])).decode()
            answer = server.predict("picture", [{"image": {"b64": image}}])
            assert answer.json()["predictions"] == [1.0, 2.0, 3.0]
            assert ("prediction-time-latency" in answer.headers) == (protocol != "grpc-v2")

            tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [image]}
            answer = server.client.post("/v2/models/picture/infer", json={"inputs": [tensor]})
            told = answer.json()
            values = told["predictions"] if protocol == "v1" else told["outputs"][0]["data"]
            assert values == [1.0, 2.0, 3.0]


def test_a_transformer_that_makes_several_tensors_of_a_text(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("a\nlong\nway\n")
    with instance(tmp_path / "predictor", "scoring.py:Scoring", "--model_name=text") as predictor:
        asking = (f"--predictor_host=127.0.0.1:{predictor.port}", "--predictor_protocol=v2")
        flags = ("--model_name=text", f"--vocab_file={tmp_path / 'words'}", *asking)
        with instance(tmp_path / "transformer", "tokenizer.py", *flags) as server:
            assert server.predict("text", ["a long way"]).json() == {"predictions": "way", "prob": 50.0}


def test_nodes_of_a_graph_one_of_which_has_a_second_name(tmp_path: Path) -> None:
    with instance(tmp_path, "graph_node.py", "--model_name=node") as server:
        assert set(server.client.get("/v1/models").json()["models"]) == {"node", "alias", "missing"}
        for name in ("node", "alias"):
            assert server.predict(name, [0]).json() == {"predictions": [{"message": "SUCCESS"}]}
        answer = server.predict("missing", [0])
        assert (answer.status_code, answer.json()) == (404, {"error": "Intentional 404 code"})


def test_a_class_in_a_file_that_imports_from_kserve(tmp_path: Path) -> None:
    with instance(tmp_path, "target.py:Upper") as server:
        answer = server.predict("upper", ["a"], headers={"origin": "https://example.org"})
        assert answer.json() == {"predictions": ["A"]}
        assert answer.headers["access-control-allow-origin"] == "*"


EXPLAINER = """
import asyncio
import nest_asyncio
from kserve import Model, ModelServer

class Explainer(Model):
    async def explain(self, payload, headers=None):
        return {"explanations": [type(asyncio.get_running_loop()).__module__.partition(".")[0]]}

if __name__ == "__main__":
    ModelServer().start([Explainer("nesting")])
"""


@pytest.mark.parametrize(("asked", "nests", "loop"), [
    ("auto", True, "asyncio"), ("auto", False, "uvloop"), ("asyncio", False, "asyncio"),
])  # fmt: skip
def test_the_event_loop_is_the_one_that_is_asked_for_or_that_the_script_can_nest_in(
    tmp_path: Path, asked: str, nests: bool, loop: str
) -> None:
    """KServe's explainers wait for their predictor in a nested loop."""
    (tmp_path / "nest_asyncio.py").touch()
    script = EXPLAINER if nests else EXPLAINER.replace("import nest_asyncio", "")
    with serving(tmp_path, script, f"--event-loop={asked}") as server:
        server.wait_ready()
        answer = server.client.post("/v1/models/nesting:explain", json={"instances": [0]})
        assert answer.json() == {"explanations": [loop]}


def grow(folder: Path, *, answers: list[int]) -> None:
    """Put a tree that predicts these for 0 and 1 into a folder."""
    import joblib
    from sklearn.tree import DecisionTreeClassifier

    folder.mkdir(parents=True, exist_ok=True)
    joblib.dump(DecisionTreeClassifier().fit([[0.0], [1.0]], answers), folder / "model.joblib")


def predictions(server: Server, name: str) -> list[list[int]]:
    """What is predicted for 0 and 1, asked often enough to meet both workers."""
    answers = [
        httpx.post(f"{server.url}/v1/models/{name}:predict", json={"instances": [[0.0], [1.0]]}, verify=False)
        for _ in range(12)
    ]
    assert {answer.status_code for answer in answers} == {200}, answers[0].text
    return [list(kept) for kept in {tuple(answer.json()["predictions"]) for answer in answers}]


def test_a_server_of_model_files(tmp_path: Path) -> None:
    grow(tmp_path / "models", answers=[3, 4])
    flags = ("--model_name=tree", f"--model_dir={tmp_path / 'models'}")
    with instance(tmp_path, "trees/__main__.py", *flags) as server:
        assert predictions(server, "tree") == [[3, 4]]
        tensor = {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [0, 1]}
        answer = server.client.post("/v2/models/tree/infer", json={"inputs": [tensor]}).json()
        assert (answer["outputs"][0]["name"], answer["outputs"][0]["data"]) == ("output-0", [3, 4])


def test_a_repository_that_loads_models_when_they_are_asked_for(tmp_path: Path) -> None:
    models = tmp_path / "models"
    grow(models / "oak", answers=[1, 2])
    with instance(tmp_path, "trees/__main__.py", f"--model_dir={models}") as server:
        assert predictions(server, "oak") == [[1, 2]]

        def change(name: str, verb: str) -> httpx.Response:
            return server.client.post(f"/v2/repository/models/{name}/{verb}")

        assert change("elm", "load").status_code == 404
        grow(models / "elm", answers=[5, 6])
        assert change("elm", "load").json() == {"name": "elm", "load": True}
        assert predictions(server, "elm") == [[5, 6]]

        grow(models / "oak", answers=[7, 8])
        assert change("oak", "load").status_code == 200
        assert predictions(server, "oak") == [[7, 8]]

        (models / "elm" / "model.joblib").unlink()
        failed = change("elm", "load")
        assert failed.status_code == 500
        assert "ModelMissingError" in failed.json()["error"]
        assert predictions(server, "elm") == [[5, 6]]

        assert change("elm", "unload").status_code == 200
        assert server.predict("elm", [[0.0]]).status_code == 404
        states = {entry["name"]: entry["state"] for entry in server.client.post("/v2/repository/index").json()}
        assert states == {"oak": "READY", "elm": "UNAVAILABLE"}
