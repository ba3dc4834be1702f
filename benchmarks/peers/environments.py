"""An environment of its own for each peer, from pinned requirements; and which versions it holds.

They lie in $MPSERVE_PEERS, or ~/.cache/mpserve-peers. A peer whose environment is missing is left out of a run.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("MPSERVE_PEERS") or Path.home() / ".cache" / "mpserve-peers")
THIS_TREE = ""
"""The environment of mpserve: the one that runs this."""

DEBIANS_PYTHON = "/usr/bin/python3.11"
"""Triton's Python backend is linked against a libpython of this version, with a shared library as Debian builds it."""

VERSIONS = """
import platform, sys
from importlib.metadata import version
print(platform.python_version(), *(f"{name}=={version(name)}" for name in sys.argv[1:]))
"""


def names() -> list[str]:
    """Of all peers' environments, installed or not."""
    return sorted(path.stem for path in (HERE / "requirements").glob("*.txt"))


def program(environment: str, name: str = "python") -> str:
    """The path of a program in an environment."""
    folder = Path(sys.executable).parent if environment == THIS_TREE else ROOT / environment / "bin"
    return str(folder / name)


def is_installed(environment: str) -> bool:
    """Whether the environment is there, with what its requirements are now."""
    stamp = ROOT / environment / ".installed"
    return environment == THIS_TREE or (stamp.exists() and stamp.read_text() == _requirements(environment).read_text())


def install(environment: str) -> None:
    """Make the environment anew, unless it is there.

    Raises:
        subprocess.CalledProcessError: venv or pip failed, and has said why on stderr.
    """
    if is_installed(environment):
        return print(f"{environment}: installed")
    print(f"{environment}: installing into {ROOT / environment}", flush=True)
    python = DEBIANS_PYTHON if environment == "triton" else sys.executable
    subprocess.run([python, "-m", "venv", "--clear", str(ROOT / environment)], check=True)
    pip = [program(environment), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(_requirements(environment))], check=True)
    (ROOT / environment / ".installed").write_text(_requirements(environment).read_text())
    return None


@cache
def versions(environment: str) -> dict[str, str]:
    """Of Python and of each required package, as they are installed."""
    required = ["mpserve", "numpy", "orjson", "torch", "uvicorn", "uvloop", "httptools", "gunicorn", "starlette"]
    if environment != THIS_TREE:
        lines = _requirements(environment).read_text().splitlines()
        required = [line.partition("==")[0] for line in lines]
    command = [program(environment), "-I", "-c", VERSIONS, *required]
    python, *found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {"python": python} | dict(each.split("==") for each in found)


def _requirements(environment: str) -> Path:
    return HERE / "requirements" / f"{environment}.txt"
