"""What the documents tell to type: their models, their `mpserve serve`, their curl lines, and the answers they show."""

import json
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT, Block, blocks, documents, examples, lines_of
from tests.running import Server, free_port, running


def documents_with_curl() -> list[Path]:
    return [document for document in documents() if any(lines_of(block, "curl") for block in own_blocks(document))]


def own_blocks(document: Path) -> list[Block]:
    """The blocks of a document, without those of an example that it shows: the example is run itself."""
    shown = {block for example in examples() if example != document for block in blocks(example)}
    return [block for block in blocks(document) if block not in shown]


def name_of(document: Path) -> str:
    return document.name if document.parent.name == "docs" else str(document.relative_to(ROOT))


def decoded(text: str) -> list[Any]:
    """The JSON documents that stand in it one after the other; the last digits of a float are the CPU's own."""
    decoder = json.JSONDecoder(parse_float=lambda number: round(float(number), 4))
    found, rest = [], text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def answer(curl: str, folder: Path, server: Server) -> str:
    """What the server answers to the line; a status of 400 or more fails."""
    command = [*shlex.split(curl.replace("localhost:8080", f"127.0.0.1:{server.port}")), "--silent", "--fail-with-body"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, f"{curl}\n{run.stdout}{run.stderr}\n{server.log}"
    return run.stdout


def start(command: str, folder: Path, stack: ExitStack) -> Server:
    mpserve, *arguments = shlex.split(command.removesuffix(" &"))
    port = free_port()
    whole = [sys.executable, "-m", mpserve, *arguments, f"--http_port={port}"]
    return stack.enter_context(running(whole, folder, port, slow_stop="a model of any library")).wait_ready()


def write_file(block: Block, folder: Path) -> None:
    """A model that begins with its file's name, as in ``# model.py``, is written there."""
    first = block.text.partition("\n")[0]
    if block.language == "python" and first.startswith("# ") and first.endswith(".py"):
        (folder / first.removeprefix("# ")).write_text(block.text)


@pytest.mark.parametrize("document", documents_with_curl(), ids=name_of)
def test_each_curl_line_is_answered_as_its_document_says(document: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    server: Server | None = None
    given = ""
    with ExitStack() as stack:
        for block in own_blocks(document):
            write_file(block, tmp_path)
            if block.language == "json" and given:  # right behind the curl lines: their answers
                assert decoded(block.text) == decoded(given)
            if block.language == "text" and given:
                assert block.text.strip() == given.strip()
            for command in lines_of(block, "python"):
                script = [sys.executable, *shlex.split(command)[1:]]
                subprocess.run(script, cwd=tmp_path, check=True, timeout=300, capture_output=True)
            for command in lines_of(block, "mpserve serve"):
                server = start(command, tmp_path, stack)
            given = ""
            for curl in lines_of(block, "curl"):
                assert server is not None, f"{document.name} does not say which server answers {curl}"
                given += answer(curl, tmp_path, server)


def test_the_readmes_first_screen_shows_a_curl_line_and_its_answer() -> None:
    languages = [block.language for block in blocks(ROOT / "README.md")[:5]]
    assert languages == ["", "python", "sh", "sh", "json"]  # the first one needs a file of the reader
