"""deploy/compose without Docker: the file is valid, and its server and Prometheus run by its commands."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import yaml

from mpserve.config.settings import Settings
from tests.documents import ROOT
from tests.prometheus import Prometheus, needs_prometheus
from tests.running import PATIENCE, Server, eventually, free_port, running

COMPOSE = ROOT / "deploy" / "compose"
SECONDS = {"s": 1, "m": 60}
MODEL = """
def predict(x):
    return x * 2
"""


def composition(**variables: str) -> dict[str, Any]:
    """The file, with ${NAME:-default} replaced."""
    text = re.sub(
        r"\$\{(\w+):-([^}]*)\}",
        lambda found: variables.get(found[1], found[2]),
        (COMPOSE / "compose.yaml").read_text(),
    )
    assert "${" not in text
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def instructions(name: str) -> list[str]:
    """What follows an instruction in the last stage of the Dockerfile."""
    stage = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").rpartition("\nFROM ")[2]
    return re.findall(rf"^{name} (.*)", stage, re.MULTILINE)


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """The paths in the container, and where the files of this repository are that are mounted there."""
    found = {}
    for volume in service["volumes"]:
        source, target = volume.split(":")[:2]
        if "/" in source:
            found[target] = (COMPOSE / source).resolve()
    return found


def test_the_file_is_valid_and_all_that_it_mounts_is_there() -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    compose = composition()
    jsonschema.validate(compose, schema)
    assert (
        COMPOSE / compose["services"]["mpserve"]["build"]["context"] / "Dockerfile"
    ).resolve() == ROOT / "Dockerfile"
    for name, service in compose["services"].items():
        assert all(path.exists() for path in mounts(service).values()), name
    server = compose["services"]["mpserve"]
    assert server["build"]["args"].keys() <= set(
        re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    )
    assert int(server["stop_grace_period"].removesuffix("s")) > Settings.graceful_timeout
    assert server["ports"] == [f"{port}:{port}" for port in (Settings.http_port, Settings.grpc_port)]
    grafana = mounts(compose["services"]["grafana"])
    (datasource,) = yaml.safe_load(grafana["/etc/grafana/provisioning/datasources/mpserve.yaml"].read_text())[
        "datasources"
    ]
    assert datasource["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load(grafana["/etc/grafana/provisioning/dashboards/mpserve.yaml"].read_text())["providers"]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in grafana
    assert home.startswith(provider["options"]["path"])


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[Server, list[str], dict[str, str]]]:
    """ENTRYPOINT and command, with the image's variables; and the health check of the file."""
    service = composition(MODELS=str(folder), WORKERS="2")["services"]["mpserve"]
    assert mounts(service) == {"/mnt/models": folder}
    port = free_port()
    environment = dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))
    del environment["PATH"]
    environment |= {"HOME": str(folder), "MPSERVE_HTTP_PORT": str(port), "MPSERVE_DRAIN_DELAY": "0"}
    mpserve, *words = json.loads(instructions("ENTRYPOINT")[0])
    command = [sys.executable, "-m", mpserve, *words, *service["command"]]
    with running([word.replace("/mnt/models", str(folder)) for word in command], folder, port, environment) as server:
        kind, program, *arguments = service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "python")
        assert ":8080/" in arguments[-1]
        check = [sys.executable, *arguments[:-1], arguments[-1].replace(":8080/", f":{port}/")]
        yield server, check, {**os.environ, **environment}


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Prometheus]:
    """The command of the file; the server and its own port are elsewhere, and a scrape comes each second."""
    service = composition()["services"]["prometheus"]
    places = {"/prometheus": folder / "prometheus"}
    for target, source in mounts(service).items():
        places[target] = folder / Path(target).name
        text = source.read_text().replace("mpserve:8080", f"127.0.0.1:{port}")
        places[target].write_text(text.replace("scrape_interval: 15s", "scrape_interval: 1s"))
    own = free_port()
    command = ["prometheus"]
    for word in service["command"]:
        flag, _, value = word.partition("=")
        command.append(f"{flag}={places.get(value, f'127.0.0.1:{own}')}")
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=PATIENCE, trust_env=False) as client:

            def is_ready() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/-/ready").status_code == 200
                return False

            eventually(is_ready)
            yield Prometheus(client)
    finally:
        process.terminate()
        process.wait(PATIENCE)


@needs_prometheus
def test_its_commands_serve_and_watch(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL)
    with served(folder) as (server, check, environment):
        server.wait_ready()
        assert subprocess.run(check, env=environment, check=False, timeout=PATIENCE).returncode == 0
        assert server.predict("model", [[1, 2]]).json() == {"predictions": [[2, 4]]}
        with prometheus(tmp_path, server.port) as watching:
            eventually(lambda: watching.ask("up", "job") == {("mpserve",): 1})
            assert watching.ask("mpserve_model_ready_workers", "model_name")
            groups = watching.client.get("/api/v1/rules").json()["data"]["groups"]
            alerts = yaml.safe_load((ROOT / "deploy" / "monitoring" / "alerts.yaml").read_text())["groups"]
            assert [rule["name"] for group in groups for rule in group["rules"]] == [
                rule["alert"] for group in alerts for rule in group["rules"]
            ]
        server.process.terminate()
        assert server.wait_end() == 0
        assert (
            subprocess.run(check, env=environment, check=False, timeout=PATIENCE, capture_output=True).returncode == 1
        )
