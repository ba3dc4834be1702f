"""The pages, the code that they show, and which of their commands no test runs, with the reason."""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

SHELLS = ("sh", "bash", "shell", "console")


class Block(NamedTuple):
    """A fenced block: its language ("" without one) and what is in it."""

    language: str
    text: str


def documents() -> list[Path]:
    """The pages for readers: those of the root, all of docs/, and what each example says."""
    return [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(DOCS.rglob("*.md")), *examples(),
    ]  # fmt: skip


def examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*/README.md"))


def name_of(document: Path) -> str:
    """The path of a page, such as ``docs/reference/models.md``."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    ]


def own_blocks(document: Path) -> list[Block]:
    """The blocks of a page, without an example's commands and their answer that it shows: the example is followed itself."""
    shown = {pair for example in examples() if example != document for pair in pairwise(blocks(example))}
    found = blocks(document)
    again = {at + step for at, pair in enumerate(pairwise(found)) if pair in shown for step in (0, 1)}
    return [block for at, block in enumerate(found) if at not in again]


def commands_of(block: Block) -> list[str]:
    """The commands of a shell block. One that goes on behind a backslash is one; ``&`` at its end is left out."""
    lines = block.text.replace("\\\n", " ").splitlines() if block.language in SHELLS else []
    lines = [re.sub(r"\s+# .*|\s*&$", "", line.removeprefix("$ ")) for line in lines]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


RUN_BY = {
    "docs/operate/capacity.md": "tests/test_places.py",
    "docs/operate/docker.md": "tests/test_places.py",
    "docs/operate/kserve.md": "tests/test_places.py",
    "docs/operate/kubernetes.md": "tests/test_places.py",
    "docs/operate/nginx.md": "tests/test_places.py",
    "docs/operate/observability.md": "tests/e2e/test_tracing.py",
    "docs/operate/systemd.md": "tests/test_places.py",
    "docs/tutorial.md": "tests/e2e/test_tutorial.py",
    "docs/operate/upgrades.md": "tests/test_places.py",
}
"""Pages that have a test of their own, which runs their commands, or checks them as far as a bare machine can."""

NOT_RUN = {
    r"pip install (?!--target).*": "the environment of the tests has the packages; the tutorial's line is run",
    r"make \w.*|make": "the verbs of the Makefile: .ci/run runs lint and test, and each night others",
    r"apt-get install wrk": "what a test needs of Debian, .ci/run installs",
    r"\.venv/bin/python scripts/\w+\.py.*": "they need a checkout of KServe, a GPU or a bare machine",
    r"kubectl .*": "there is no cluster; tests/test_manifests.py holds the manifests against KServe's schemas",
    r"mpserve serve --model_dir=s3://models/iris --workers=4": "no such bucket; tests/serving/storage has an S3",
    r"mpserve serve https://example.com/digits/model.py:Digits": "no such address; tests/serving/storage has one",
}
"""Commands that no test runs, as regular expressions, and the reason."""


def reason_not_to_run(command: str) -> str | None:
    return next((reason for pattern, reason in NOT_RUN.items() if re.fullmatch(pattern, command)), None)
