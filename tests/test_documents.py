"""What the pages name is there: files, commands that are run, messages, pages of the site, sources."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import mpserve
from mpserve import testing
from scripts.build_docs import pages
from tests.documents import DOCS, NOT_RUN, ROOT, RUN_BY, blocks, commands_of, documents, name_of, reason_not_to_run

FOLLOWED = "sh"
PROGRAMS = ("apt-get", "cat", "cp", "curl", "docker", "echo", "gunicorn", "hf", "kubectl", "make", "mkdir", "mpserve", "nginx",
            "pip", "prometheus", "promtool", "pytest", "python", "python3", "sudo", "systemctl")  # fmt: skip
"""How a line of a block without a language begins if it is a command."""
MESSAGE = re.compile(r"^ *```text\n(.*?)```$", re.DOTALL | re.MULTILINE)


def test_every_file_that_the_documents_for_developers_name_is_there() -> None:
    files = [path.relative_to(ROOT).as_posix() for folder in ("mpserve", "tests", "benchmarks", "scripts")
             for path in (ROOT / folder).rglob("*.py")]  # fmt: skip
    for document in (DOCS / "architecture.md", DOCS / "operate" / "reliability.md", ROOT / "CONTRIBUTING.md"):
        named = set(re.findall(r"`([\w/]+\.py)`", document.read_text()))
        assert {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)} == set(), document


def test_every_command_of_every_page_is_run_or_has_a_reason_why_not() -> None:
    told: list[str] = []
    used: set[str] = set()
    for document, block in [(page, block) for page in documents() for block in blocks(page)]:
        commands = commands_of(block)
        used |= {pattern for pattern in NOT_RUN for command in commands if re.fullmatch(pattern, command)}
        if name_of(document) in RUN_BY:
            continue
        if not block.language and any(line.split(" ")[0] in PROGRAMS for line in block.text.splitlines()):
            told.append(f"{name_of(document)}: mark the block as sh, so that its commands are run:\n{block.text}")
        told += [
            f"{name_of(document)}: mark the block as sh, or give a reason in NOT_RUN: {command}"
            for command in commands
            if reason_not_to_run(command) is None and block.language != FOLLOWED
        ]
    assert not told, "\n".join(told)
    assert used == set(NOT_RUN), f"no page has these commands any more: {set(NOT_RUN) - used}"
    assert [test for page, test in RUN_BY.items() if (ROOT / page).exists() and not (ROOT / test).exists()] == []


def test_every_verb_and_script_that_a_page_names_is_there() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in documents():
        for command in [command for block in blocks(document) for command in commands_of(block)]:
            if command.startswith("make "):
                assert command.split()[1] in verbs, f"{name_of(document)}: {command}"
            for script in re.findall(r"scripts/\w+\.py", command):
                assert (ROOT / script).exists(), f"{name_of(document)}: {command}"


def texts_of(module: Path) -> Iterator[str]:
    """Each text of the module, as its reader sees it, with ``...`` for what is filled in."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(?:\.?\d*[dfgrs])", "...", node.value)


def test_every_message_of_the_page_on_troubleshooting_is_one_that_the_server_gives() -> None:
    texts = {re.sub(r"\s+", " ", text) for module in (ROOT / "mpserve").rglob("*.py") for text in texts_of(module)}
    page = (DOCS / "troubleshooting.md").read_text()
    shown = [re.sub(r"\s+", " ", message).strip() for message in MESSAGE.findall(page)]
    assert len(shown) > 15
    assert [message for message in shown if not any(is_given(message, text) for text in texts)] == []


def is_given(message: str, text: str) -> bool:
    """Whether the words of the message between its gaps stand in the text, in their order."""
    words = [re.escape(part.strip()) for part in message.split("...") if part.strip(" .:;,()'")]
    return len("".join(words)) > 12 and re.search(".*".join(words), text) is not None


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = re.findall(r'" = "([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(navigation) == sorted(place.as_posix() for place in pages().values())


def test_no_folder_of_pages_outgrows_its_reader() -> None:
    sizes = Counter(page.parent.name for page in DOCS.rglob("*.md"))
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}


def test_every_public_name_is_in_the_api() -> None:
    shown = set(re.findall(r"^::: (\S+)$", (DOCS / "reference" / "api.md").read_text(), re.MULTILINE))
    public = {f"mpserve.{name}" for name in mpserve.__all__ if not name.startswith("_")}
    classes = [value for value in vars(testing).values() if isinstance(value, type)]
    of_tests = {f"mpserve.testing.{each.__name__}" for each in classes if each.__module__ == testing.__name__}
    assert shown == public | of_tests | {"mpserve.serving.repository.formats.Format"}


def test_every_fact_about_another_server_has_a_source() -> None:
    rows = [
        line for line in (DOCS / "comparison.md").read_text().splitlines() if line.startswith("| ") and "**" not in line
    ]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:] if not row.startswith("| Server")]
    assert len(cells) > 80
    assert [cell for cell in cells if cell != "-" and "](https://" not in cell] == []
