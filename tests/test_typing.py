"""The types that users see: code of theirs passes a type checker that is as strict as it can be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.e2e

MISTAKES = """
from mpserve import Tensor, TensorModel
from mpserve.testing import Client

class Twice(TensorModel):
    name = 2
    def predict(self, x: int) -> int:
        return x

Client(Twice)
Tensor("x", "FP32", "shape")
"""


def test_what_users_write_passes_a_strict_type_checker_and_mistakes_do_not(tmp_path: Path) -> None:
    """The package as it is installed: its ``py.typed`` counts, and no configuration of ours."""
    (tmp_path / "users.py").write_text((ROOT / "tests" / "models" / "typed.py").read_text())
    (tmp_path / "mistaken.py").write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    env = {"PATH": "/usr/bin", "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "users.py", "mistaken.py"], check=False, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    lines = MISTAKES.splitlines()
    found = [lines[int(number) - 1] for number in re.findall(r"^mistaken.py:(\d+): error", done.stdout, re.MULTILINE)]
    assert found == ["    name = 2", "Client(Twice)", 'Tensor("x", "FP32", "shape")'], done.stdout
    assert "users.py" not in done.stdout
