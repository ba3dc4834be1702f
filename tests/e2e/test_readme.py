"""The README's first screen, done as it says: its model, its command, its curl, its answer."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.running import free_port, running

ROOT = Path(__file__).parents[2]


def first_screen() -> tuple[str, str, str, str]:
    """The first four code blocks: the model, the command, the curl line and the answer."""
    blocks = re.findall(r"```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    model, command, curl, answer = blocks[:4]
    return model, command.strip(), curl.strip(), answer.strip()


def test_the_first_screen_answers_as_it_says(tmp_path: Path) -> None:
    model, command, curl, answer = first_screen()
    (tmp_path / "model.py").write_text(model)
    port = free_port()
    mpserve, *arguments = shlex.split(command)
    assert mpserve == "mpserve"
    with running([sys.executable, "-m", "mpserve", *arguments, f"--http_port={port}"], tmp_path, port) as server:
        server.wait_ready()
        asked = shlex.split(curl.replace("localhost:8080", f"127.0.0.1:{port}"))
        given = subprocess.run([*asked, "--silent"], capture_output=True, text=True, check=True, timeout=60)
        assert given.stdout == answer
