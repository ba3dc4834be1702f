"""What is published: the whole package in the wheel, all that the tests need in the sdist, a page without dead links."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.e2e

NEEDED = ("benchmarks", "deploy", "docs", "examples", "mpserve", "scripts", "tests")
"""The folders that the tests read."""
CACHES = {"__pycache__", ".pytest_cache", ".mypy_cache", ".hypothesis"}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def wheel(dist: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(dist.glob("*.whl")))


def metadata(dist: Path) -> Message:
    with wheel(dist) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def files(folder: str) -> set[str]:
    paths = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if not CACHES.intersection(path.parts)}


def test_the_wheel_has_every_file_of_the_package_and_no_other(dist: Path) -> None:
    with wheel(dist) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == files("mpserve")


def test_the_sdist_has_every_file_that_the_tests_need(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.name for path in ROOT.iterdir() if path.is_file() and path.name != ".git"}
    for folder in NEEDED:
        wanted |= files(folder)
    assert wanted - packed == set()


def test_pypi_would_take_both_and_show_the_readme(dist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist.iterdir())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stdout.count("PASSED")) == (0, 2), run.stdout + run.stderr


def test_the_page_on_pypi_has_no_link_that_works_in_the_repository_only(dist: Path) -> None:
    page = str(metadata(dist).get_payload())
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"\]\((?!https?:)[^)]*\)", readme)
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", page)
    assert re.findall(r"^#+ .*", page, re.MULTILINE) == re.findall(r"^#+ .*", readme, re.MULTILINE)
    assert "pip install 'mpserve[sklearn]'" in page
    assert "pip install '." not in page


def test_every_python_from_the_lowest_is_named(dist: Path) -> None:
    told = metadata(dist)
    lowest = int(str(told["Requires-Python"]).removeprefix(">=3."))
    named = [name.rpartition(" ")[2] for name in told.get_all("Classifier", []) if "Python :: 3." in name]
    assert named == [f"3.{minor}" for minor in range(lowest, lowest + len(named))]
    assert f"3.{sys.version_info.minor}" in named
