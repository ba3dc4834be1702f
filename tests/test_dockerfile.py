"""The Dockerfile's steps, executed in order in clean environments, give a server that answers as the image's user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import free_port

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_dockerfile.py"

MODEL = """
def predict(x):
    return x * 2
"""


def test_the_steps_of_the_dockerfile_give_a_server_that_answers(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "model.py").write_text(MODEL)
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"instances": [[1, 2], [3, 4]]}))
    command = [sys.executable, str(SCRIPT), f"--model_dir={models}", f"--request={request}", f"--port={free_port()}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'model answers {"predictions":[[2,4],[6,8]]}' in run.stdout
    assert "HEALTHCHECK exits 0" in run.stdout
    assert "after SIGTERM the server exits 0" in run.stdout
