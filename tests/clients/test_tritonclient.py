"""tritonclient, unchanged and in an environment of its own, against two workers: HTTP and gRPC, sync and asyncio."""

from pathlib import Path

from tests.clients.environments import python_with, run_against_two_workers, run_documented


def test_tritonclient_is_answered_over_http_and_grpc(tmp_path: Path) -> None:
    python = python_with(tmp_path / "environment", "tritonclient[http,grpc]>=2.73,<3")
    run_against_two_workers(tmp_path, python, "with_tritonclient.py", "--allow_client_shm")
    tracing = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "parentbased_always_off"}
    run_against_two_workers(tmp_path, python, "administer_with_tritonclient.py", env=tracing)
    run_documented(tmp_path, python, "tritonclient")
