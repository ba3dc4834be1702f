"""The code that the documents show, to be run as they show it."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    """A fenced block: its language ("" without one) and what is in it."""

    language: str
    text: str


def documents() -> list[Path]:
    """The README, all of docs/, and what each example says."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *examples()]


def examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*/README.md"))


def blocks(document: Path) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    ]


def lines_of(block: Block, program: str) -> list[str]:
    """The commands of a shell block that run the program; one that goes on behind a backslash is one."""
    joined = block.text.replace("\\\n", " ") if block.language == "sh" else ""
    return [
        line.removeprefix("$ ") for line in joined.splitlines() if line.removeprefix("$ ").startswith(f"{program} ")
    ]
