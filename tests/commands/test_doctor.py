"""`mpserve doctor`: what it looks at, and that it says first what is wrong."""

import re
import resource
import socket

import pytest

from mpserve.cli import main
from mpserve.version import VERSION
from tests.running import free_port


def told(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """The exit status and the report for a server on free ports, unless the options say otherwise."""
    status = 0
    try:
        main(["doctor", "--host=127.0.0.1", f"--http_port={free_port()}", f"--grpc_port={free_port()}", *options])
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, capsys.readouterr().out


def test_it_looks_at_all_that_a_server_needs(capsys: pytest.CaptureFixture[str]) -> None:
    _, report = told(capsys)
    facts = dict(re.findall(r"^  (.{18}) (.*)$", report, re.MULTILINE))
    looked_at = "mpserve gunicorn uvicorn starlette numpy orjson uvloop extras devices CPUs memory /dev/shm".split()  # noqa: SIM905
    assert {*looked_at, "open files", "HTTP port", "gRPC port"} <= {name.strip() for name in facts}
    assert f"{VERSION}, Python 3." in report
    assert "sklearn" in report


def test_what_is_wrong_is_told_first_with_the_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            status, report = told(
                capsys, f"--http_port={taken.getsockname()[1]}", "--workers=4096", "--devices=cuda:99"
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wrong = report.partition("\n\n")[0].splitlines()
    assert status == 1
    for name, remedy in {
        "devices": "cuda:99", "CPUs": "set --workers to", "open files": "ulimit -n 1024",
        "HTTP port": "Address already in use: choose another by --http_port",
    }.items():  # fmt: skip
        assert [line for line in wrong if line.startswith(f"WRONG {name}") and remedy in line], (name, report)


def test_a_mistake_in_the_command_line_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--wrokers=2")[0] == 2
    assert told(capsys, "flats.joblib") == (2, "")
