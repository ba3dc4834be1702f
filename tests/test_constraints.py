"""deploy/constraints.txt has a version of everything that pyproject.toml asks for, and the versions are allowed there."""

import re
from importlib.metadata import requires

from packaging.requirements import Requirement

from tests.documents import ROOT


def pinned() -> dict[str, str]:
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_each_requirement_has_one_version_that_it_allows_but_torch_has_none() -> None:
    versions = pinned()
    assert not [name for name in versions if re.match(r"torch|triton|nvidia", name)]
    for requirement in map(Requirement, requires("mpserve") or []):
        name = requirement.name.lower().replace("_", "-")
        if name != "torch":
            assert requirement.specifier.contains(versions[name]), f"{requirement} and {name}=={versions[name]}"


def test_the_dockerfile_can_use_the_file() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^COPY .*deploy/constraints\.txt \./$", dockerfile, re.MULTILINE)
    assert re.search(r"^ARG PIP_CONSTRAINT$", dockerfile, re.MULTILINE)
    assert "!deploy/constraints.txt" in (ROOT / ".dockerignore").read_text().splitlines()
