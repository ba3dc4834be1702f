"""The ways in from Python, up to where processes begin (those are in tests/e2e/test_ways_in.py)."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mpserve import ModelServer, PredictorConfig, asgi_app
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.server import find
from tests.asgi import client_of
from tests.cases import each
from tests.models.faulty import Echo


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No words of pytest's own, and pytest's logging back after a test that has configured its own."""
    monkeypatch.setattr(sys, "argv", ["script.py"])
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_arguments_of_a_model_server_win_over_the_command_line_and_that_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--workers=3", "--http-port", "9000", "--mine=1", "word"])
    monkeypatch.setenv("MPSERVE_HTTP_PORT", "1")
    monkeypatch.setenv("MPSERVE_THREADS", "2")
    settings = ModelServer(workers=2).settings
    assert (settings.workers, settings.http_port, settings.threads) == (2, 9000, 2)


def test_a_predictor_config_is_taken_as_in_the_sdk_and_wins_over_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--predictor_host=a", "--enable_predictor_health_check"])
    given = PredictorConfig.of(ModelServer().settings)
    assert (given.predictor_host, given.predictor_protocol, given.predictor_health_check) == ("a", "v1", True)
    config = PredictorConfig("b:80", "v2", True, 30.0, 2, False, "ca.pem")
    assert PredictorConfig.of(ModelServer(predictor_config=config).settings) == config
    assert config.predictor_base_url == "https://b:80"


def test_an_option_that_is_not_known_is_refused_with_the_closest() -> None:
    with pytest.raises(ConfigurationError, match="worker: there is no such option, expected workers"):
        ModelServer(worker=2)


def test_a_model_is_registered_under_a_second_name_and_keeps_its_own() -> None:
    server, model = ModelServer(), Echo()
    server.register_model(model, "alias")
    server.register_model(model)
    assert [registered.name for registered in server.models] == ["alias", "echo"]
    assert server.models[1] is model


@each("models, words", [
    (Echo(), r"expected a list of models, got .*Echo.*: start\(\[model\]\)"),
    (["echo"], r"expected instances of mpserve\.Model, got 'echo'"),
    ([Echo(), Echo()], "two models are named 'echo'"),
])  # fmt: skip
def test_start_refuses_what_is_no_list_of_models(models: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ModelServer().start(models)  # type: ignore[arg-type]


def test_options_of_the_sdk_without_effect_are_told_when_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "--max_threads=4"])
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger("mpserve.server"), "handle", lambda record: told.append(record.getMessage()))
    with pytest.raises(ConfigurationError):
        ModelServer(configure_logging=True).start(["no model"])  # type: ignore[list-item]
    assert told == [
        "configure_logging has no effect: use --log_config_file, --log_format and --access_log",
        "max_threads has no effect: gRPC runs on the event loop",
    ]


async def test_options_of_an_application_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSERVE_MAX_BODY_SIZE", "1")
    app = asgi_app([Echo], max_body_size="20")
    async with app.router.lifespan_context(app), client_of(app) as client:
        for count, status in ((1, 200), (9, 413)):
            answer = await client.post("/v1/models/echo:predict", json={"instances": [1] * count})
            assert answer.status_code == status


def test_a_target_comes_before_a_model_directory(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("from mpserve import Model\nclass One(Model):\n    name = 'one'\n")
    settings = Settings(target=str(tmp_path / "one.py"), model_dir=str(tmp_path))
    [source] = find(settings)
    assert source.obtain().name == "one"
    with pytest.raises(ConfigurationError, match=r"model directory .*nowhere does not exist \(--model_dir\)"):
        find(replace(settings, model_dir=str(tmp_path / "nowhere")))


def test_importing_mpserve_and_its_models_brings_no_framework_and_no_server() -> None:
    script = "import sys; from mpserve import Model, TensorModel, Tensor; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "starlette", "uvicorn", "gunicorn", "multiprocessing"} & set(loaded)
