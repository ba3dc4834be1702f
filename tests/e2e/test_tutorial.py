"""The tutorial, followed by its commands alone in a fresh environment, with mpserve from its wheel."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.documents import DOCS, ROOT, reason_not_to_run
from tests.following import Reader


def build_wheel(folder: Path) -> None:
    """A wheel of this tree, built from a copy of it, since a build leaves files behind."""
    source = folder / "source"
    names = ("mpserve", "pyproject.toml", "README.md", "LICENSE")
    source.mkdir(parents=True)
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(source)], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True)


def libraries(folder: Path) -> None:
    """All packages of the tests' environment but mpserve, so that pip has to download none."""
    folder.mkdir()
    for entry in [entry for place in sys.path if place.endswith("site-packages") for entry in Path(place).iterdir()]:
        if "mpserve" not in entry.name and entry.suffix != ".pth" and not (folder / entry.name).exists():
            (folder / entry.name).symlink_to(entry)


def is_run(command: str) -> bool:
    return command.startswith("pip ") or reason_not_to_run(command) is None


def test_the_tutorial_leads_to_what_it_shows(tmp_path: Path) -> None:
    build_wheel(tmp_path / "wheels")
    libraries(tmp_path / "libraries")
    (tmp_path / "reader").mkdir()
    with ExitStack() as stack:
        reader = Reader(tmp_path / "reader", stack, runs=is_run)
        for name in ("mpserve", "pip"):
            (reader.programs / name).unlink()  # the page installs them
        reader.environment |= {
            "PYTHONPATH": str(tmp_path / "libraries"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
            "PIP_NO_COMPILE": "1",
        }
        reader.follow(DOCS / "tutorial.md")
        assert list((tmp_path / "reader" / "tutorial" / "lib").glob("python*/site-packages/mpserve"))
