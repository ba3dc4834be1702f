"""What a model prints when nobody reads it any more."""

import subprocess
import sys

import pytest

PRINTS = """
import logging, sys
from mpserve.telemetry.streams import endure
logging.basicConfig()
endure()
sys.stdin.readline()
for _ in range(3):
    print("x" * 100_000, flush=True)
print("it goes on", file=sys.stderr)
"""


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_print_goes_on_when_the_reader_is_gone(flags: tuple[str, ...]) -> None:
    command = [sys.executable, *flags, "-c", PRINTS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        told = _finish(process)
    assert process.returncode == 0, told
    assert told.count("nobody reads the standard output") == 1
    assert told.endswith("it goes on\n")


def _finish(process: "subprocess.Popen[str]") -> str:
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("\n")
    process.stdin.close()
    return process.stderr.read()


def test_a_help_whose_reader_is_gone_ends_quietly() -> None:
    done = subprocess.run(
        f"{sys.executable} -m mpserve serve --help-all | head -1",
        shell=True,
        check=True,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("Usage: mpserve serve TARGET [options]\n", "")
