"""Builds the wheel, installs it in fresh environments, alone and beside other packages, and runs the demo there.

    scripts/check_wheel.py [PYTHON ...]

PYTHON: interpreters, this one by default. uv, beside this one, makes the environments. The demo and its model are copied away
from the tree, so that only the wheel can answer. Exits non-zero when an installation or a demo fails.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
DEMO = ("scripts/demo.py", "examples/digits_sklearn", "examples/digits")
NEEDED = "scikit-learn>=1.5"
BESIDE = {
    "alone": [],
    "mlflow": ["mlflow>=3"],
    "the kserve SDK": ["kserve>=0.15; python_version < '3.14'"],  # it allows no newer Python
    "ray": ["ray[serve]>=2.40"],
}
"""What is installed together with the wheel. A lowest version, since pip would rather take an old one than none."""


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without a word of it otherwise. Raises CalledProcessError."""
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def check(python: str, wheel: Path, beside: list[str], folder: Path) -> str:
    """Install and run the demo in this folder; return the versions that matter. Raises CalledProcessError."""
    own = folder / "venv/bin/python"
    run(UV, "venv", "--python", python, folder / "venv", cwd=folder)
    run(UV, "pip", "install", "--python", own, wheel, NEEDED, *beside, cwd=folder)
    run(UV, "pip", "check", "--python", own, cwd=folder)
    for name in DEMO:
        (folder / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
    run(own, folder / "scripts/demo.py", cwd=folder)
    frozen = run(UV, "pip", "freeze", "--python", own, cwd=folder).split()
    return " ".join(line for line in frozen if line.startswith(("gunicorn=", "mlflow=", "kserve=", "ray=")))


def checks(pythons: list[str], scratch: Path) -> Iterator[bool]:
    """Whether each installation works. Prints a line for each."""
    run(UV, "build", "--wheel", "--out-dir", scratch, ROOT, cwd=scratch)
    [wheel] = scratch.glob("*.whl")
    for python in pythons:
        for name, beside in BESIDE.items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                try:
                    told = check(python, wheel, beside, Path(folder))
                except subprocess.CalledProcessError as error:
                    print(f"FAILED {python}, {name}: {error}\n{error.stdout}{error.stderr}", flush=True)
                    yield False
                else:
                    print(f"ok     {python}, {name}: {told}", flush=True)
                    yield True


def main() -> int:
    """Check all, also after a failure."""
    with tempfile.TemporaryDirectory() as scratch:
        return 0 if all(list(checks(sys.argv[1:] or [sys.executable], Path(scratch)))) else 1


if __name__ == "__main__":
    sys.exit(main())
