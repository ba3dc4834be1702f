"""`mpserve manifest`: what it prints agrees with the server, with the runtime of deploy/kserve, and with what KServe asks for."""

from typing import Any

import pytest
import yaml

from mpserve.cli import main
from mpserve.config.command_line import parse
from tests.cases import each
from tests.documents import ROOT


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    main(["manifest", *arguments])
    return yaml.safe_load(capsys.readouterr().out)


def predictor_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return printed(capsys, *arguments)["spec"]["predictor"]


def test_it_agrees_with_the_runtime_in_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    predictor = predictor_of(capsys, "model.py:Digits")
    runtime = yaml.safe_load((ROOT / "deploy" / "kserve" / "clusterservingruntime.yaml").read_text())["spec"]
    [container], [base] = predictor["containers"], runtime["containers"]
    for field in base.keys() - {"args"}:
        assert container[field] == base[field], field
    assert predictor["volumes"] == runtime["volumes"]
    service = yaml.safe_load((ROOT / "deploy" / "kserve" / "inferenceservice.yaml").read_text())["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == service["terminationGracePeriodSeconds"]


@each("arguments", [
    ("model.py:Digits", "--workers=2"), ("--http-port", "9000", "model.py"), ("--model_dir=/mnt/models", "--access_log"),
    ("model.py", "--graceful_timeout=60", "--load_timeout=7", "--ssl_certfile=/c.pem"),
])  # fmt: skip
def test_the_options_of_serve_become_arguments_and_decide_the_rest(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    predictor = predictor_of(capsys, *arguments)
    [container] = predictor["containers"]
    found, asked = parse(container["args"], {}), parse(arguments, {}).settings
    assert found.unknown == []
    assert found.settings.ignore_unknown_flags
    for name in ("target", "model_dir", "workers", "http_port", "access_log", "graceful_timeout", "ssl_certfile"):
        assert getattr(found.settings, name) == getattr(asked, name)
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= asked.load_timeout
    assert startup["httpGet"]["port"] == container["ports"][0]["containerPort"] == asked.http_port
    assert startup["httpGet"].get("scheme") == ("HTTPS" if asked.ssl_certfile else None)
    assert predictor["terminationGracePeriodSeconds"] > asked.graceful_timeout


def test_what_scales_is_named_only_if_something_may_scale(capsys: pytest.CaptureFixture[str]) -> None:
    key = "serving.kserve.io/autoscalerClass"
    alone = printed(capsys, "model.py")
    assert alone["metadata"]["annotations"][key] == "none"
    assert not {"scaleMetric", "autoScaling"} & alone["spec"]["predictor"].keys()
    hpa = printed(capsys, "model.py", "--max_replicas=3")
    assert hpa["metadata"]["annotations"][key] == "hpa"
    assert (hpa["spec"]["predictor"]["scaleMetric"], hpa["spec"]["predictor"]["scaleTarget"]) == ("cpu", 70)
    keda = printed(capsys, "model.py", "--max_replicas=3", "--scaler=keda", "--scale_target=4", "--name=iris")
    assert keda["metadata"]["annotations"][key] == "keda"
    assert "scaleMetric" not in keda["spec"]["predictor"], "KServe refuses it beside KEDA"
    [metric] = keda["spec"]["predictor"]["autoScaling"]["metrics"]
    assert metric["external"]["target"] == {"type": "Value", "value": "4"}, "KServe refuses a target without `value`"
    assert metric["external"]["metric"]["query"] == 'sum(mpserve_requests_in_flight{pod=~"iris-predictor-.*"})'


def test_a_model_that_is_fetched_has_a_place_on_a_disk_and_a_gpu_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictor = predictor_of(capsys, "s3://models/Iris_2.joblib", "--gpus=1", "--memory=1500MiB")
    [container] = predictor["containers"]
    [cache] = [variable["value"] for variable in container["env"] if variable["name"] == "MPSERVE_CACHE_DIR"]
    [volume] = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == cache]
    assert {"name": volume, "emptyDir": {}} in predictor["volumes"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind] == {"cpu": "1", "memory": str(1500 << 20), "nvidia.com/gpu": "1"}


@each("target, name", [
    ("model.py:Digits", "model"), ("s3://models/Iris_2.joblib", "iris-2"), ("package.module:Digits", "package"),
    ("/app/models/digits/", "digits"), ("model.py --model_name=two", "two"),
])  # fmt: skip
def test_the_name_comes_from_the_model(capsys: pytest.CaptureFixture[str], target: str, name: str) -> None:
    assert printed(capsys, *target.split())["metadata"]["name"] == name


@each("arguments, said", [
    ((), "nothing to serve: name a target"), (("model.py", "--name=Not_A_Name"), "--name: got 'Not_A_Name'"),
    (("model.py", "--max_replicas=2", "--min_replicas=3"), "--max_replicas=2 is less than --min_replicas=3"),
    (("model.py", "--scale_target=101"), "expected a percentage"), (("model.py", "--scaler=kpa"), "expected one of hpa, keda"),
    (("model.py", "--maxreplicas=2"), "did you mean --max_replicas?"), (("2.py",), "--name: got '2'"),
])  # fmt: skip
def test_a_mistake_is_told(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["manifest", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
