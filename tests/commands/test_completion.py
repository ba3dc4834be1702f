"""`mpserve completion`: what a shell offers when somebody presses Tab."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mpserve.cli import main
from tests.cases import each

BASH = """
eval "$SCRIPT"
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
compopt() {{ :; }}
_mpserve
echo "${{COMPREPLY[*]}}"
"""


def script(capsys: pytest.CaptureFixture[str], shell: str) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


@each("words, offered", [
    ("mpserve se", "serve"), ("mpserve serve --worker", "--workers="), ("mpserve serve --log_level = de", "debug"),
    ("mpserve serve --log-level e", "error"), ("mpserve serve --http-p", "--http-port="),
    ("mpserve manifest --imag", "--image="), ("mpserve serve --imag", ""), ("mpserve serve mod", "model.py"),
    ("mpserve dev --model_dir = ot", "other"), ("mpserve completion z", "zsh"),
])  # fmt: skip
def test_bash_offers_what_may_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, offered: str
) -> None:
    (tmp_path / "model.py").touch()
    (tmp_path / "other").mkdir(exist_ok=True)
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH.format(words=words)],
        check=True, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "SCRIPT": script(capsys, "bash")}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == (offered, "")


@each("shell, flag", [("zsh", "--workers=[Number of worker processes]"), ("fish", "-l workers ")])
def test_the_other_shells_take_their_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], shell: str, flag: str
) -> None:
    text = script(capsys, shell)
    assert flag in text
    assert "-d 'Serve models until the server is stopped'" in text or "'serve:Serve models until" in text
    if shutil.which(shell):
        (tmp_path / "script").write_text(text)
        done = subprocess.run([shell, "-n", "script"], check=False, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
