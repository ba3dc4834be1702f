"""The files that the documents for developers name."""

import re

from tests.documents import ROOT


def test_every_file_that_the_documents_for_developers_name_is_there() -> None:
    files = [path.relative_to(ROOT).as_posix() for folder in ("mpserve", "tests", "benchmarks", "scripts")
             for path in (ROOT / folder).rglob("*.py")]  # fmt: skip
    for document in (ROOT / "docs" / "architecture.md", ROOT / "docs" / "reliability.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"`([\w/]+\.py)`", document.read_text()))
        assert {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)} == set(), document
