"""deploy/kserve agrees with the server, and scripts/check_manifests.py finds what a cluster would refuse or drop."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mpserve import Model, asgi_app
from mpserve.config.command_line import parse
from mpserve.config.settings import Settings
from mpserve.version import VERSION
from tests.cases import each

ROOT = Path(__file__).resolve().parent.parent
CHECKER = ROOT / "scripts" / "check_manifests.py"
WRITER = ROOT / "scripts" / "write_manifests.py"
FAMILIES = ("catboost", "huggingface", "lightgbm", "mlflow", "onnx", "pytorch", "sklearn", "xgboost")

WIDGET_CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
spec:
  group: example.com
  names: {kind: Widget}
  versions:
  - name: v0
    served: false
    schema: {openAPIV3Schema: {type: object, properties: {}}}
  - name: v1
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, format: int32}
              target: {x-kubernetes-int-or-string: true}
              note: {type: string, nullable: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              labels: {type: object, additionalProperties: {type: string}}
              ports:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [port, protocol]
                items: {type: object, properties: {port: {type: integer}, protocol: {type: string, default: TCP}}}
"""
WIDGET: dict[str, Any] = {
    "apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "one", "annotations": {"a": "b"}},
    "spec": {"size": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return script(CHECKER)


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def crds(tmp_path: Path) -> Path:
    folder = tmp_path / "crds"
    folder.mkdir()
    (folder / "widgets.yaml").write_text(WIDGET_CRD)
    return folder


def widget(**spec: Any) -> dict[str, Any]:
    return {**WIDGET, "spec": {**WIDGET["spec"], **spec}}


@each("manifest", [
    widget(), widget(target=8080), widget(target="http"), widget(note=None), widget(note="text"),
    widget(free={"anything": [1, {"goes": None}]}), widget(labels={"any": "name"}),
    widget(ports=[{"port": 1}, {"port": 1, "protocol": "UDP"}, {"port": 2}]),
])  # fmt: skip
def test_a_valid_manifest_has_no_faults(checker: ModuleType, crds: Path, manifest: dict[str, Any]) -> None:
    assert checker.faults(manifest, checker.load_schemas(crds)) == []


@each("manifest, place, reason", [
    (widget(colour="red"), "$.spec", "'colour' was unexpected"),
    (widget(size="1"), "$.spec.size", "'1' is not of type 'integer'"),
    (widget(size=2**31), "$.spec.size", "maximum"),
    (widget(size=None), "$.spec.size", "None is not of type 'integer'"),
    (widget(target=[80]), "$.spec.target", "is not of type 'integer', 'string'"),
    (widget(note=1), "$.spec.note", "is not valid under any"),
    (widget(labels={"any": 1}), "$.spec.labels.any", "1 is not of type 'string'"),
    (widget(ports=[{"port": 1, "nodeport": 2}]), "$.spec.ports[0]", "'nodeport' was unexpected"),
    (widget(ports=[{"port": 1}, {"port": 1, "protocol": "TCP"}]), "$.spec.ports", "two items have"),
    ({**WIDGET, "spec": {}}, "$.spec", "'size' is a required property"),
    ({**WIDGET, "status": {}}, "$", "'status' was unexpected"),
    ({**WIDGET, "metadata": {"name": "Not_A_Name"}}, "$.metadata.name", "does not match"),
    ({**WIDGET, "metadata": {"name": "one", "annotations": {"a": 1}}}, "$.metadata.annotations.a", "'string'"),
    ({**WIDGET, "kind": "Gadget"}, "$", "no schema for apiVersion example.com/v1 and kind Gadget"),
    ({**WIDGET, "apiVersion": "example.com/v0"}, "$", "no schema for apiVersion example.com/v0"),
    (["a list"], "$", "expected a mapping, got list"),
])  # fmt: skip
def test_a_fault_is_reported_with_its_place_and_reason(
    checker: ModuleType, crds: Path, manifest: object, place: str, reason: str
) -> None:
    (fault,) = checker.faults(manifest, checker.load_schemas(crds))
    assert fault.startswith(f"{place}: ")
    assert reason in fault


def checked(*arguments: Path) -> tuple[int, str]:
    """The status and the words of the script."""
    ended = subprocess.run([sys.executable, CHECKER, *arguments], check=False, capture_output=True, text=True)
    return ended.returncode, ended.stdout + ended.stderr


def test_the_script_exits_1_and_names_the_file_if_any_manifest_has_a_fault(crds: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump_all([widget(), widget(size=2)]))
    bad.write_text(yaml.safe_dump_all([widget(), widget(size="2")]))
    assert checked(crds, good) == (0, "good.yaml: valid\n")
    status, words = checked(crds, good, bad)
    assert status == 1
    assert "bad.yaml: invalid\n  $.spec.size: '2' is not of type 'integer'" in words


def test_the_script_refuses_a_folder_without_schemas(tmp_path: Path) -> None:
    status, words = checked(tmp_path)
    assert (status, "no CustomResourceDefinition" in words) == (2, True)


def manifest(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / "kserve" / name).read_text())


def test_the_manifests_agree_with_the_server_and_with_each_other() -> None:
    runtime = manifest("clusterservingruntime.yaml")["spec"]
    predictor = manifest("inferenceservice.yaml")["spec"]["predictor"]
    (container,), model = runtime["containers"], predictor["model"]
    environ = {variable["name"]: variable["value"] for variable in container["env"]}
    settings, *others = parse([*container["args"], *model["args"]], environ)
    assert (container["name"], others) == ("kserve-container", [[], []])
    assert (settings.model_name, settings.model_dir) == ("{{.Name}}", "/mnt/models")
    assert settings.http_port == Settings.http_port
    assert [port["containerPort"] for port in container["ports"]] == [settings.http_port]
    assert runtime["annotations"]["prometheus.kserve.io/port"] == str(settings.http_port)
    startup, *others = (container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe"))
    assert [probe["httpGet"]["port"] for probe in (startup, *others)] == [settings.http_port] * 3
    paths = [probe["httpGet"]["path"] for probe in (startup, *others)]
    assert paths == ["/v2/health/ready", "/v2/health/ready", "/v2/health/live"]
    routes = {getattr(route, "path", None) for route in asgi_app([Model("m")]).routes}
    assert {*paths, runtime["annotations"]["prometheus.kserve.io/path"]} <= routes
    assert startup["periodSeconds"] * startup["failureThreshold"] >= settings.load_timeout
    assert 0 < settings.drain_delay < settings.graceful_timeout < predictor["terminationGracePeriodSeconds"]
    assert model["runtime"] == manifest("clusterservingruntime.yaml")["metadata"]["name"]
    assert model["protocolVersion"] in runtime["protocolVersions"]
    offered = [(each["name"], each["version"]) for each in runtime["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in offered
    assert container["image"].rpartition(":")[2] == VERSION


def test_the_transformer_takes_what_kserve_adds_and_speaks_the_predictors_protocol() -> None:
    spec = manifest("transformer.yaml")["spec"]
    (container,) = spec["transformer"]["containers"]
    protocol = spec["predictor"]["model"]["protocolVersion"]
    added = ["--model_name=digits", "--predictor_host=digits-predictor.ns", f"--predictor_protocol={protocol}"]
    parsed = parse([*container["command"][2:], *container["args"], *added, "--http_port=8080"], {})
    assert (parsed.ignored, parsed.unknown) == ([], [])
    assert (parsed.settings.predictor_protocol, parsed.settings.enable_predictor_health_check) == ("v1", True)
    assert [port["containerPort"] for port in container["ports"]] == [Settings.http_port]


def test_the_files_of_the_families_are_what_the_script_writes() -> None:
    ended = subprocess.run([sys.executable, WRITER, "--check"], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")
    written = sorted(path.stem for path in (ROOT / "deploy" / "kserve" / "runtimes").glob("*.yaml"))
    assert written == sorted(script(WRITER).FAMILIES) == list(FAMILIES)


@each("family", FAMILIES)
def test_a_family_has_a_runtime_and_services_that_the_runtime_serves(family: str) -> None:
    runtime = manifest(f"runtimes/{family}.yaml")["spec"]
    services = list(yaml.safe_load_all((ROOT / "deploy" / "kserve" / "services" / f"{family}.yaml").read_text()))
    (container,) = runtime["containers"]
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in script(WRITER).FAMILIES[family].extras.split(","))
    offered = [(each["name"], each["version"]) for each in runtime["supportedModelFormats"]]
    protocols = []
    for service in services:
        model = service["spec"]["predictor"]["model"]
        parsed = parse([*container["args"], *model["args"]], {})
        assert (parsed.ignored, parsed.unknown) == ([], [])
        assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in offered
        assert model["runtime"] == manifest(f"runtimes/{family}.yaml")["metadata"]["name"]
        ports = [port["containerPort"] for port in model.get("ports", [])]
        assert ports == ([parsed.settings.grpc_port] if model["protocolVersion"] == "grpc-v2" else [])
        protocols.append(model["protocolVersion"])
    assert set(protocols) <= set(runtime["protocolVersions"])
    assert protocols == ["v2", "grpc-v2"]
