"""Writes a ClusterServingRuntime and an InferenceService for each family of model files into deploy/kserve, and the alerts
of deploy/monitoring/alerts.yaml as a PrometheusRule beside them.

Usage: write_manifests.py [--check]; --check writes nothing, and exits 1 if a file differs. A family's runtime is
clusterservingruntime.yaml with another name, image and formats: a probe or a limit is changed in that file alone.

Source: KServe's config/runtimes for the names and versions of the formats, and for the priorities of its own runtimes.
"""

import copy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

KSERVE = Path(__file__).resolve().parent.parent / "deploy" / "kserve"
BASE = KSERVE / "clusterservingruntime.yaml"
MONITORING = KSERVE.parent / "monitoring"
PRIORITY = 10  # KServe's own runtimes have 1, 2 and 3. KServe refuses two runtimes of one format and one priority
GRPC_PORT = 8081


class Family(NamedTuple):
    """The formats of one image: KServe's names of them, each with its versions, and the extras that the image is built with."""

    formats: dict[str, tuple[str, ...]]
    extras: str


FAMILIES = {
    "sklearn": Family({"sklearn": ("1",)}, "sklearn,skops,grpc"),
    "xgboost": Family({"xgboost": ("1", "2", "3")}, "xgboost,grpc"),
    "lightgbm": Family({"lightgbm": ("3", "4")}, "lightgbm,grpc"),
    "catboost": Family({"catboost": ("1",)}, "catboost,grpc"),
    "onnx": Family({"onnx": ("1",)}, "onnx,grpc"),
    "pytorch": Family({"pytorch": ("1", "2")}, "torch,grpc"),
    "mlflow": Family({"mlflow": ("1", "2", "3")}, "mlflow,sklearn,grpc"),
    "huggingface": Family({"huggingface": ("1",)}, "huggingface,grpc"),
}


def runtime_of(name: str, family: Family, base: dict[str, Any]) -> dict[str, Any]:
    """The runtime of a family. It names no port: KServe takes 8080, and an InferenceService names the port of gRPC."""
    runtime = copy.deepcopy(base)
    runtime["metadata"]["name"] = f"mpserve-{name}"
    spec = runtime["spec"]
    spec["supportedModelFormats"] = [
        {"name": format_, "version": version, "autoSelect": True, "priority": PRIORITY}
        for format_, versions in family.formats.items()
        for version in versions
    ]
    spec["protocolVersions"] = ["v1", "v2", "grpc-v2"]
    (container,) = spec["containers"]
    image, _, tag = container["image"].rpartition(":")
    container["image"] = f"{image}-{name}:{tag}"
    container["args"].append(f"--grpc_port={GRPC_PORT}")
    del container["ports"]
    return runtime


def services_of(name: str, family: Family) -> list[dict[str, Any]]:
    """Two InferenceServices: V1 and V2 over HTTP, and V2 over gRPC."""
    format_, versions = next(iter(family.formats.items()))
    model = {
        "modelFormat": {"name": format_, "version": versions[-1]},
        "runtime": f"mpserve-{name}",
        "protocolVersion": "v2",
        "storageUri": f"pvc://models/{name}",
        "args": ["--workers=2"],
    }
    over_grpc = {**model, "protocolVersion": "grpc-v2", "ports": [
        {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"},
    ]}  # fmt: skip
    return [_service(f"{name}-example", model), _service(f"{name}-example-grpc", over_grpc)]


def _service(name: str, model: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"terminationGracePeriodSeconds": 30, "model": model}},
    }


def written() -> dict[Path, str]:
    """The text of every file."""
    base = yaml.safe_load(BASE.read_text())
    files = {}
    for name, family in FAMILIES.items():
        note = "# Written by scripts/write_manifests.py from clusterservingruntime.yaml, which says why.\n"
        build = f"# docker build --build-arg EXTRAS={family.extras} --tag {{image}} .\n"
        runtime = runtime_of(name, family, base)
        image = runtime["spec"]["containers"][0]["image"]
        files[KSERVE / "runtimes" / f"{name}.yaml"] = note + build.format(image=image) + _dump([runtime])
        files[KSERVE / "services" / f"{name}.yaml"] = (
            f"# Written by scripts/write_manifests.py. A model file on runtimes/{name}.yaml: over HTTP, and over gRPC.\n"
            + _dump(services_of(name, family))
        )
    files[MONITORING / "prometheusrule.yaml"] = (
        "# Written by scripts/write_manifests.py from alerts.yaml, for the Prometheus operator.\n" + _dump([_rule()])
    )
    return files


def _rule() -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "mpserve"},
        "spec": yaml.safe_load((MONITORING / "alerts.yaml").read_text()),
    }


def _dump(documents: list[dict[str, Any]]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False, explicit_start=False)


def main() -> int:
    """The exit status."""
    stale = [path for path, text in written().items() if not path.is_file() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(KSERVE.parent.parent)} is not what scripts/write_manifests.py writes")
        return 1 if stale else 0
    for path in stale:
        path.write_text(written()[path])
        print(path.relative_to(KSERVE.parent.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
