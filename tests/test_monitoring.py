"""The files in deploy/monitoring: their metrics are those of the server, and each alert fires where it must."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from mpserve import Tensor, TensorModel
from tests.asgi import serving
from tests.cases import each
from tests.prometheus import needs_prometheus

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
MONITORING = DEPLOY / "monitoring"
OURS = re.compile(r"\b(?:mpserve|request)_[a-z_]+(?=[{\[\s)*]|$)", re.MULTILINE)
"""Names of metrics in an expression: a name of ours that a selector, a range, an operator or the end follows."""
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


class Doubled(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP64", (-1,)),)
    outputs = (Tensor("y", "FP64", (-1,)),)
    max_batch_size = 4

    def predict(self, x: Any) -> Any:
        return x * 2


async def exposed() -> set[str]:
    """The names of all samples that the server may expose."""
    async with serving(Doubled()) as client:
        text = (await client.get("/metrics")).text
    families = list(text_string_to_metric_families(text))
    return {family.name + part for family in families for part in PARTS.get(family.type, ())}


def loaded(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text())


def expressions(name: str) -> list[str]:
    """The expressions of a file."""
    if name == "dashboard.json":
        dashboard = json.loads((MONITORING / name).read_text())
        queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
        variables = [variable["query"]["query"] for variable in dashboard["templating"]["list"][1:]]
        return queries + [query.removeprefix("label_values(").rpartition(",")[0] for query in variables]
    if name == "scaledobject.yaml":
        return [trigger["metadata"]["query"] for trigger in loaded(name)["spec"]["triggers"]]
    if name == "alerts.yaml":
        return [rule["expr"] for group in loaded(name)["groups"] for rule in group["rules"]]
    return [series["series"] for test in loaded(name)["tests"] for series in test["input_series"]]


@each("file", ["dashboard.json", "alerts.yaml", "alerts_test.yaml", "scaledobject.yaml"])
async def test_each_metric_in_the_files_is_exposed_by_the_server(file: str) -> None:
    known = await exposed()
    for expression in expressions(file):
        named = set(OURS.findall(expression))
        assert named, expression
        assert named <= known, expression


@needs_prometheus
def test_the_alerts_fire_where_they_must_and_nowhere_else() -> None:
    ended = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yaml"], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tested = {test["alertname"] for group in loaded("alerts_test.yaml")["tests"] for test in group["alert_rule_test"]}
    assert tested == {rule["alert"] for group in loaded("alerts.yaml")["groups"] for rule in group["rules"]}


def test_the_pod_monitor_scrapes_the_port_of_the_runtime() -> None:
    runtime = yaml.safe_load((DEPLOY / "kserve" / "clusterservingruntime.yaml").read_text())["spec"]
    [endpoint] = loaded("podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    ports = {port["name"]: str(port["containerPort"]) for port in runtime["containers"][0]["ports"]}
    assert ports[endpoint["port"]] == runtime["annotations"]["prometheus.kserve.io/port"]
    assert endpoint["path"] == runtime["annotations"]["prometheus.kserve.io/path"]
