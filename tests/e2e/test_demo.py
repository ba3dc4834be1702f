"""``make demo`` shows what it promises: its server answers V1 and V2 with the digit of the image, and stops."""

import subprocess
import sys

from tests.documents import ROOT


def test_the_demo_tells_the_digit_of_the_image() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert '{"predictions":[{"digit":7,' in run.stdout
