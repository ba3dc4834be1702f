"""Writes deploy/constraints.txt: a version of each package that an image may get, the newest that pyproject.toml allows.

The versions are those for the image's Python on Linux, as pip resolves all extras together. torch and NVIDIA's libraries are
left out: their builds are chosen by the GPU, or by another index.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "deploy" / "constraints.txt"
LEFT_OUT = re.compile(r"torch|triton|nvidia-.*|cuda-.*")


def wanted() -> list[str]:
    """What mpserve and all its extras require, without the markers of the extras."""
    found = set()
    for text in requires("mpserve") or []:
        requirement = Requirement(text)
        if not LEFT_OUT.fullmatch(requirement.name):
            requirement.marker = None
            found.add(str(requirement))
    return sorted(found)


def python_of_the_image() -> str:
    """The version in the Dockerfile, such as 3.12."""
    (version,) = set(re.findall(r"^FROM python:([\d.]+)-slim", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    return version


def resolved(requirements: list[str], python: str) -> dict[str, str]:
    """The packages that pip would install: name to version."""
    command = [
        sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report=-", "--target=.",
        f"--python-version={python}", "--only-binary=:all:", *requirements,
    ]  # fmt: skip
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = (package["metadata"] for package in report["install"])
    return {metadata["name"].lower().replace("_", "-"): metadata["version"] for metadata in found}


def main() -> None:
    """Write the file."""
    python = python_of_the_image()
    lines = [
        f"{name}=={version}\n"
        for name, version in sorted(resolved(wanted(), python).items())
        if not LEFT_OUT.fullmatch(name)
    ]
    head = f"# Written by `make constraints` for Python {python} on Linux. pip takes it by PIP_CONSTRAINT, or by --constraint.\n"
    CONSTRAINTS.write_text(head + "".join(lines))


if __name__ == "__main__":
    main()
