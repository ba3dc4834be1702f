"""``mpserve manifest``: prints an InferenceService of KServe that serves a TARGET of an image, or at an address.

The probes, the pauses of a stop and the security of the container are those of ``deploy/kserve/clusterservingruntime.yaml``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mpserve.commands.arguments import read
from mpserve.config.options import BYTES, CHOICE, TEXT, WHOLE, Option, options_of
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, NothingToServe
from mpserve.serving.repository.import_target import script_of
from mpserve.version import VERSION

_GROUP = "Manifest"
OWN = (
    Option("name", None, TEXT, _GROUP, "Name of the InferenceService; otherwise the model's name or file", "--name"),
    Option("image", f"mpserve:{VERSION}", TEXT, _GROUP, "Image, built from the Dockerfile, with the TARGET", "--image"),
    Option("cpus", 1, WHOLE, _GROUP, "CPUs of each pod", "--cpus", minimum=1),
    Option("memory", 2 << 30, BYTES, _GROUP, "Memory of each pod, such as 4GiB", "--memory", minimum=1 << 20),
    Option("gpus", 0, WHOLE, _GROUP, "GPUs of each pod", "--gpus", minimum=0),
    Option("min_replicas", 1, WHOLE, _GROUP, "Minimum number of pods", "--min_replicas", minimum=1),
    Option("max_replicas", 1, WHOLE, _GROUP, "Maximum number of pods; more than the minimum for scaling", "--max_replicas",
           minimum=1),
    Option("scaler", "hpa", CHOICE, _GROUP, "What scales: hpa by the CPUs, keda by the requests in flight", "--scaler",
           choices=("hpa", "keda")),
    Option("scale_target", None, WHOLE, _GROUP, "Percent of the CPUs (hpa, otherwise 70), or requests in flight of a pod"
           " (keda, otherwise 8)", "--scale_target", minimum=1),
    Option("prometheus", "http://prometheus-operated.monitoring:9090", TEXT, _GROUP, "Address of Prometheus, for keda",
           "--prometheus"),
)  # fmt: skip

CACHE = "/var/cache/mpserve"  # where a model that has an address is kept: too large for memory
END = 5  # seconds of a pod's end after the server's own
PROBE_PERIOD, SLOW_PERIOD, PROBE_TIMEOUT = 5, 10, 5


def run(arguments: Sequence[str]) -> int:
    """Print the manifest. Raises ConfigurationError for a mistake in the command line."""
    settings, own, given = read(arguments, OWN, drain_delay=5.0)
    if settings.target is None and settings.model_dir is None:
        raise NothingToServe("manifest")
    if own["max_replicas"] < own["min_replicas"]:
        raise ConfigurationError(
            f"--max_replicas={own['max_replicas']} is less than --min_replicas={own['min_replicas']}"
        )
    if own["scaler"] == "hpa" and (own["scale_target"] or 0) > 100:
        raise ConfigurationError(
            f"--scale_target={own['scale_target']}: expected a percentage of the CPUs, from 1 to 100"
        )
    print(yaml.safe_dump(manifest(settings, own, given), sort_keys=False), end="")
    return 0


def manifest(settings: Settings, own: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """The InferenceService. ``given`` are the options of the server as they were typed."""
    name = own["name"] or _name(settings)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        raise ConfigurationError(f"--name: got {name!r}, expected letters from a to z, digits and dashes, at most 63")
    predictor: dict[str, Any] = {
        "minReplicas": own["min_replicas"],
        "maxReplicas": own["max_replicas"],
        **(_scaling(name, own) if own["max_replicas"] > own["min_replicas"] else {}),
        "terminationGracePeriodSeconds": settings.graceful_timeout + END,
        "containers": [_container(settings, own, given)],
        # Heartbeats and metrics are files that are written all the time. They count towards the limit of memory.
        "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}}],
    }
    if _is_fetched(settings):
        predictor["volumes"].append({"name": "models", "emptyDir": {}})
        container = predictor["containers"][0]
        container["volumeMounts"].append({"name": "models", "mountPath": CACHE})
        container["env"].append({"name": "MPSERVE_CACHE_DIR", "value": CACHE})
    scaler = own["scaler"] if own["max_replicas"] > own["min_replicas"] else "none"
    annotations = {"serving.kserve.io/deploymentMode": "RawDeployment", "serving.kserve.io/autoscalerClass": scaler}
    predictor["annotations"] = {
        "prometheus.io/scrape": "true", "prometheus.io/port": str(settings.http_port), "prometheus.io/path": "/metrics",
    }  # fmt: skip
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"predictor": predictor},
    }


def _name(settings: Settings) -> str:
    place = (settings.target or settings.model_dir or "").rstrip("/")
    file = Path(place.partition("://")[2] or place).name.partition(":")[0]
    told = settings.model_name or file.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", told.lower()).strip("-")


def _container(settings: Settings, own: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    flags = {option.name: option.flag for option in options_of(Settings)}
    words = [settings.target] if settings.target is not None else []
    words += [f"{flags[name]}={value}" for name, value in given.items()]
    if script_of(settings.target) is None:
        words += ["--ignore_unknown_flags=true"]
    memory = own["memory"]
    resources: dict[str, Any] = {
        "cpu": str(own["cpus"]),
        "memory": f"{memory >> 30}Gi" if memory % (1 << 30) == 0 else str(memory),
    }
    if own["gpus"]:
        resources["nvidia.com/gpu"] = str(own["gpus"])
    return {
        "name": "kserve-container",
        "image": own["image"],
        "args": words,
        "env": [{"name": "MPSERVE_DRAIN_DELAY", "value": f"{settings.drain_delay:g}"}],
        "ports": [{"name": "http1", "containerPort": settings.http_port, "protocol": "TCP"}],
        **_probes(settings),
        "securityContext": {
            "runAsNonRoot": True, "privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "resources": {"requests": resources, "limits": dict(resources)},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }  # fmt: skip


def _is_fetched(settings: Settings) -> bool:
    return settings.cache_dir is None and any("://" in (place or "") for place in (settings.target, settings.model_dir))


def _probes(settings: Settings) -> dict[str, Any]:
    """The startup probe waits for as long as a load may take; the two others wait for its first success."""

    def probe(path: str, period: int, failures: int) -> dict[str, Any]:
        get: dict[str, Any] = {"path": path, "port": settings.http_port}
        if settings.ssl_certfile:
            get["scheme"] = "HTTPS"
        return {"httpGet": get, "periodSeconds": period, "timeoutSeconds": PROBE_TIMEOUT, "failureThreshold": failures}

    return {
        "startupProbe": probe("/v2/health/ready", PROBE_PERIOD, max(1, -int(-settings.load_timeout // PROBE_PERIOD))),
        "readinessProbe": probe("/v2/health/ready", PROBE_PERIOD, 2),
        # Generous: a restart loads every model again, and a busy processor is no reason for a restart.
        "livenessProbe": probe("/v2/health/live", SLOW_PERIOD, 6),
    }


def _scaling(name: str, own: dict[str, Any]) -> dict[str, Any]:
    if own["scaler"] == "hpa":
        return {"scaleMetric": "cpu", "scaleTarget": own["scale_target"] or 70}
    query = f'sum(mpserve_requests_in_flight{{pod=~"{name}-predictor-.*"}})'
    metric = {"backend": "prometheus", "serverAddress": own["prometheus"], "query": query}
    # KServe (0.20) hands KEDA the `value` alone, and KEDA divides it among the pods.
    target = {"type": "Value", "value": str(own["scale_target"] or 8)}
    return {"autoScaling": {"metrics": [{"type": "External", "external": {"metric": metric, "target": target}}]}}
