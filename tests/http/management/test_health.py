"""What is asked about the server and its models: liveness, readiness, metadata, metrics."""

import asyncio
import threading
from typing import Any

import pytest

from mpserve.http.app import build_app
from mpserve.serving.extensions.names import EXTENSIONS
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.version import VERSION
from tests.asgi import ask, client_of, core_of, serving
from tests.cases import each

PATIENCE = 30.0


class Declared(TensorModel):
    name = "m"
    version = "3"
    platform = "numpy"
    inputs = (Tensor("x", "FP32", (-1, 2)),)
    outputs = (Tensor("y", "INT64", (-1,)),)

    def predict(self, x: Any) -> Any:
        return x.argmax(axis=1)


METADATA = {
    "name": "m", "versions": ["3"], "platform": "numpy",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "INT64", "shape": [-1]}],
}  # fmt: skip


@each("path, body", [
    ("/", {"status": "alive"}), ("/v1/models", {"models": ["m"]}), ("/v1/models/m", {"name": "m", "ready": True}),
    ("/v2", {"name": "mpserve", "version": VERSION, "extensions": list(EXTENSIONS)}),
    ("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True}), ("/v2/models", {"models": ["m"]}),
    ("/v2/models/m", METADATA), ("/v2/models/m/versions/3", METADATA),
    ("/v2/models/m/ready", {"name": "m", "ready": True}),
    ("/v2/models/m/versions/3/ready", {"name": "m", "ready": True}),
])  # fmt: skip
@each("method", ["GET", "HEAD"])
def test_a_loaded_server_says_what_it_is(method: str, path: str, body: Any) -> None:
    answer = ask(Declared(), method, path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert method == "HEAD" or answer.json() == body


async def test_each_version_of_a_model_is_asked_by_its_address() -> None:
    older, newest = Declared(), Declared()
    older.version, older.platform, newest.version = "2", "older", "10"
    newer = METADATA | {"versions": ["2", "10"]}
    unknown = {"error": "Model with name m@3 does not exist. There are: m@2, m@10."}
    paths = {
        "": newer, "/versions/10": newer, "/versions/2": newer | {"platform": "older"},
        "/versions/2/ready": {"name": "m", "ready": True}, "/versions/3": unknown, "/versions/3/ready": unknown,
    }  # fmt: skip
    async with serving(newest, older) as client:
        for path, body in paths.items():
            answer = await client.get(f"/v2/models/m{path}")
            assert (answer.status_code, answer.json()) == (404 if body is unknown else 200, body)
        older.ready = False
        answer = await client.get("/v2/models/m/versions/2/ready")
        assert (answer.status_code, answer.json()) == (503, {"error": "Model with name m@2 is not ready."})
        assert (await client.get("/v2/models/m/ready")).status_code == 200
        assert (await client.get("/v2/health/ready")).status_code == 503


async def test_a_server_or_model_that_is_not_ready_says_so() -> None:
    paths = ["/v2/health/ready", "/v1/models/m", "/v2/models/m/ready", "/v2/health/live", "/v2/models/m"]
    model = Declared()
    async with serving(model) as client:
        for ready in (True, False, True):
            model.ready = ready
            answers = [await client.get(path) for path in paths]
            due = 200 if ready else 503
            assert [answer.status_code for answer in answers] == [due, due, due, 200, 200]
            if not ready:
                assert answers[0].json() == {"ready": False, "error": "Server is not ready."}
                assert answers[1].json() == {"error": "Model with name m is not ready."}


async def test_everything_but_predict_answers_while_a_predict_holds_the_models_thread() -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(Declared):
        def predict(self, x: Any) -> Any:
            begun.set()
            assert released.wait(PATIENCE)
            return super().predict(x)

    paths = ["/", "/metrics", "/v1/models/m", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/m"]
    async with serving(Slow()) as client:
        body = {"instances": [[1, 2]]}
        predicting = asyncio.ensure_future(client.post("/v1/models/m:predict", json=body))
        await asyncio.to_thread(begun.wait, PATIENCE)
        statuses = [(await client.get(path)).status_code for path in paths]
        assert not predicting.done()
        released.set()
        assert [*statuses, (await predicting).status_code] == [200] * (len(paths) + 1)


def test_metadata_that_cannot_be_told_is_an_error_that_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette raises again what it has answered, and the server then closes the connection; so it must not see it."""

    class Broken(Model):
        name = "m"

        def get_input_types(self) -> Any:
            raise ValueError("a secret path")

    answer = ask(Broken(), "GET", "/v2/models/m")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal server error"})
    assert "a secret path" in caplog.text
    assert answer.headers["x-request-id"]


@each(
    "accept, content_type",
    [("*/*", "text/plain; version="), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_metrics_are_given_in_the_format_that_is_accepted(accept: str, content_type: str) -> None:
    answer = ask(Declared(), "GET", "/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(content_type)
    assert 'mpserve_workers{state="ready"} 1.0' in answer.text
    assert 'mpserve_model_load_seconds_count{model_name="m"}' in answer.text


async def test_a_model_that_is_being_loaded_is_not_ready_rather_than_unknown() -> None:
    core = core_of(Declared())
    core.begin_alone()
    async with client_of(build_app(core)) as client:  # its lifespan is not run: nothing is loaded
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v1/models")).json() == {"models": ["m"]}
        answer = await client.get("/v1/models/m")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@each("path", ["/v2/models/stats", "/v2/models/m/stats", "/v2/models/m/versions/3/stats"])
async def test_statistics_are_those_of_the_model_or_of_all(path: str) -> None:
    async with serving(Declared()) as client:
        await client.post("/v1/models/m:predict", json={"instances": [[1, 2], [3, 4]]})
        [stats] = (await client.get(path)).json()["model_stats"]
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == ("m", "3", 2, 1)


@each("path", ["/v2/models/m/config", "/v2/models/m/versions/3/config"])
def test_the_configuration_of_a_model(path: str) -> None:
    told = ask(Declared(), "GET", path).json()
    assert (told["name"], told["input"]) == ("m", [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]}])


@each("path", ["/v2/models/other/stats", "/v2/models/m/versions/2/stats", "/v2/models/m/versions/2/config"])
def test_there_is_nothing_of_what_is_not_there(path: str) -> None:
    assert ask(Declared(), "GET", path).status_code == 404
