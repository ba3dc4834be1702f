"""The kserve SDK's own clients, unchanged and in an environment of their own, against two workers."""

from pathlib import Path

from tests.clients.environments import python_with, run_against_two_workers, run_documented


def test_the_clients_of_the_kserve_sdk_are_answered_over_rest_and_grpc(tmp_path: Path) -> None:
    python = python_with(tmp_path / "environment", "kserve==0.21.0")
    run_against_two_workers(tmp_path, python, "with_kserve.py")
    run_documented(tmp_path, python, "kserve")
