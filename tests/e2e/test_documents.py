"""What the pages tell to type: their files, their servers, their commands, and the answers that they show."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.documents import ROOT, RUN_BY, blocks, commands_of, documents, name_of, own_blocks, reason_not_to_run
from tests.following import Reader


def documents_with_commands() -> list[Path]:
    return [
        document
        for document in documents()
        if name_of(document) not in RUN_BY
        for commands in [[command for block in own_blocks(document) for command in commands_of(block)]]
        if any(reason_not_to_run(command) is None for command in commands)
    ]


def have_model(folder: Path) -> None:
    """``model.py``, which takes any rows."""
    (folder / "model.py").write_text("def predict(x):\n    return x.sum(axis=1)\n")


HAS = {"docs/operate/security.md": have_model}
"""What the reader of a page has already."""


@pytest.mark.parametrize("document", documents_with_commands(), ids=name_of)
def test_each_command_is_run_and_answered_as_its_page_says(document: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    HAS.get(name_of(document), lambda folder: None)(tmp_path)
    with ExitStack() as stack:
        Reader(tmp_path, stack).follow(document)


def test_the_readmes_first_screen_shows_a_curl_line_and_its_answer() -> None:
    languages = [block.language for block in blocks(ROOT / "README.md")[:5]]
    assert languages == ["sh", "sh", "json", "python", "sh"]
