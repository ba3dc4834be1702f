"""deploy/kubernetes as the real kustomize builds it: valid by the schemas of its kinds, and in accord with the server."""

import json
import shutil
import subprocess
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mpserve.config.command_line import parse
from tests.cases import each
from tests.documents import ROOT

DEPLOY = ROOT / "deploy"
BUILT = ("base", "overlays/cpu", "overlays/gpu", "overlays/monitoring")
OTHERS = {"PodMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that are no part of Kubernetes. scripts/check_manifests.py checks them, where their schemas are at hand."""


def kustomize_is_there() -> bool:
    """Whether kubectl has a kustomize that knows `labels` and `patches`: Debian 12's kubectl, of 2020, has not."""
    if shutil.which("kubectl") is None:
        return False
    told = subprocess.run(
        ["kubectl", "version", "--client", "--output=json"], capture_output=True, text=True, check=False
    )
    version = json.loads(told.stdout or "{}").get("kustomizeVersion", "v0").lstrip("v")
    return int(version.partition(".")[0]) >= 5


needs_kustomize = pytest.mark.skipif(not kustomize_is_there(), reason="no kubectl with kustomize 5 on PATH")


@cache
def built(folder: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


def of_kind(folder: str, kind: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in built(folder) if manifest["kind"] == kind]
    return found


def container_of(folder: str) -> dict[str, Any]:
    (container,) = of_kind(folder, "Deployment")["spec"]["template"]["spec"]["containers"]
    return container


@needs_kustomize
@each("folder", BUILT)
def test_each_object_is_valid_by_the_schema_of_its_kind(folder: str) -> None:
    known = [manifest for manifest in built(folder) if manifest["kind"] not in OTHERS]
    assert {"Deployment", "Service"} <= {manifest["kind"] for manifest in known}
    for manifest in known:
        kubernetes_validate.validate(manifest, "1.32", strict=True)


@needs_kustomize
@each("folder", BUILT)
def test_the_deployment_is_that_of_kserve_and_agrees_with_the_server(folder: str) -> None:
    container, spec = container_of(folder), of_kind(folder, "Deployment")["spec"]["template"]["spec"]
    (base,) = yaml.safe_load((DEPLOY / "kserve" / "clusterservingruntime.yaml").read_text())["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    settings, *unknown = parse(container["args"], variables)
    assert unknown == [[], []]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
    assert container["securityContext"] == base["securityContext"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = {**container[name], "httpGet": {**container[name]["httpGet"], "port": settings.http_port}}
        assert (container[name]["httpGet"]["port"], probe) == ("http", base[name])
    assert 0 < settings.drain_delay < settings.graceful_timeout < spec["terminationGracePeriodSeconds"]
    assert settings.model_dir in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    assert settings.workers <= int(container["resources"]["requests"]["cpu"])
    assert spec["enableServiceLinks"] is False
    assert container["image"] == base["image"]


@needs_kustomize
@each("folder", BUILT)
def test_all_that_selects_pods_selects_those_of_the_deployment(folder: str) -> None:
    labels = of_kind(folder, "Deployment")["spec"]["template"]["metadata"]["labels"]
    names = {port["name"] for port in container_of(folder)["ports"]}
    service = of_kind(folder, "Service")["spec"]
    assert service["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} <= names
    assert [port["name"] for port in service["ports"]] == ["http", "grpc", "metrics"]
    assert of_kind(folder, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels.items()
    for manifest in built(folder):
        target = manifest["spec"].get("scaleTargetRef") if "spec" in manifest else None
        assert target is None or target["name"] == of_kind(folder, "Deployment")["metadata"]["name"]
    scalers = [manifest["kind"] for manifest in built(folder) if "scaleTargetRef" in manifest.get("spec", {})]
    assert scalers == {"overlays/cpu": ["HorizontalPodAutoscaler"], "overlays/monitoring": ["ScaledObject"]}.get(
        folder, []
    )


@needs_kustomize
def test_the_overlays_add_what_they_are_named_for() -> None:
    assert container_of("overlays/gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    monitor = of_kind("overlays/monitoring", "PodMonitor")["spec"]
    labels = of_kind("overlays/monitoring", "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert {end["port"] for end in monitor["podMetricsEndpoints"]} <= {
        port["name"] for port in container_of("overlays/monitoring")["ports"]
    }
    alerts = yaml.safe_load((DEPLOY / "monitoring" / "alerts.yaml").read_text())
    assert of_kind("overlays/monitoring", "PrometheusRule")["spec"] == alerts
    dashboard = of_kind("overlays/monitoring", "ConfigMap")
    assert json.loads(dashboard["data"]["mpserve.json"])["panels"]
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
