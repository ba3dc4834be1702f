"""Every command of the documents on places to run in is checked as far as a machine without a cluster, Docker and systemd can."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from starlette.routing import Match

from mpserve import Model, asgi_app
from mpserve.cli import main
from mpserve.config.command_line import parse
from tests.cases import each
from tests.documents import DOCS, ROOT, blocks

OPERATE = DOCS / "operate"
PAGES = ("docker", "kubernetes", "kserve", "nginx", "systemd", "upgrades", "capacity")
COMPOSE = yaml.safe_load(re.sub(r"\$\{[^}]*\}", "x", (ROOT / "deploy" / "compose" / "compose.yaml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def commands(page: str) -> list[list[str]]:
    """The words of each command; what is behind ``>``, ``|`` or ``&`` is left out, but the name of a file that is written."""
    text = "".join(block.text for block in blocks(OPERATE / f"{page}.md") if block.language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removesuffix("&"), comments=True) for line in lines if line.strip()]


class Page:
    """The files that the commands of a page have written so far."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = tmp_path
        self.capsys = capsys

    def check(self, words: list[str]) -> None:
        checker: Callable[[list[str]], None] = getattr(self, f"check_{Path(words[0]).name.rstrip('3')}")
        checker(words[1:])

    def is_there(self, name: str) -> bool:
        return (ROOT / name).exists() or (self.folder / name).exists() or name.startswith("/")

    def check_mpserve(self, words: list[str]) -> None:
        output = None
        if ">" in words:
            words, output = words[: words.index(">")], words[-1]
        verb, *arguments = words
        if verb == "manifest":
            main(words)
            printed = self.capsys.readouterr().out
            assert yaml.safe_load(printed)["kind"] == "InferenceService"
            assert output is not None
            (self.folder / output).write_text(printed)
        else:
            assert verb in ("serve", "test", "doctor")
            assert parse(arguments, {}).unknown == []

    def check_kubectl(self, words: list[str]) -> None:
        verb, *arguments = words
        flags = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        for flag, value in [*pairwise(words), *flags.items()]:
            if flag in ("--filename", "--kustomize"):
                assert self.is_there(value), value
            if flag == "--patch":
                assert json.loads(value)
        if verb == "kustomize":
            assert (ROOT / arguments[0] / "kustomization.yaml").is_file()
        named = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
        assert set(named) <= kubectl_options(verb if verb not in ("set", "rollout") else f"{verb} {arguments[0]}")

    def check_docker(self, words: list[str]) -> None:
        verb, *arguments = words
        for name in re.findall(r"--build-arg (\w+)=", " ".join(words)):
            assert re.search(rf"^ARG {name}$", DOCKERFILE, re.MULTILINE), name
        if verb == "run":
            image = next(number for number, word in enumerate(arguments) if re.fullmatch(r"mpserve:[\d.]+", word))
            assert parse(arguments[image + 1 :], {}).unknown == []
        if verb == "compose":
            assert arguments[:2] == ["--file", "deploy/compose/compose.yaml"]
            profiles = {name for service in COMPOSE["services"].values() for name in service.get("profiles", ())}
            assert set(re.findall(r"--profile (\w+)", " ".join(arguments))) <= profiles
            assert re.search(r"\b(up|down|logs|kill)\b", " ".join(arguments[2:]))

    def check_curl(self, words: list[str]) -> None:
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if "-d" in words else "GET"
        (url,) = [word for word in words if word.startswith("localhost:8080/")]
        scope = {"type": "http", "method": method, "path": urlsplit(f"//{url}").path, "headers": []}
        assert any(route.matches(scope)[0] == Match.FULL for route in asgi_app([Model("digits")]).routes), url
        assert all(self.is_there(word[1:]) for word in words if word.startswith("@"))

    def check_make(self, words: list[str]) -> None:
        assert re.search(rf"^{words[0]}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)

    def check_python(self, words: list[str]) -> None:
        assert words[:2] == ["-m", "venv"] or (ROOT / words[0]).is_file()

    def check_systemctl(self, words: list[str]) -> None:
        units = {path.name for path in (ROOT / "deploy" / "systemd").iterdir()}
        assert words == ["daemon-reload"] or {word for word in words if word.startswith("mpserve")} <= units

    check_journalctl = check_systemctl

    def check_cp(self, words: list[str]) -> None:
        *sources, target = [word for word in words if not word.startswith("-")]
        assert target.startswith("/")
        assert all((ROOT / source).exists() for source in sources)

    def check_kill(self, words: list[str]) -> None:
        assert words[0] in ("-HUP", "-USR2", "-TERM")

    def check_nginx(self, words: list[str]) -> None:
        assert words in (["-t"], ["-s", "reload"])

    def check_wrk(self, words: list[str]) -> None:
        assert {"--threads", "--connections", "--duration", "--latency", "--script"} <= set(words)

    def check_export(self, words: list[str]) -> None:
        assert words[0].startswith("GUNICORN_CMD_ARGS=")

    def check_rm(self, words: list[str]) -> None:
        assert words == ["-f", "/etc/nginx/sites-enabled/default"]

    def check_pip(self, words: list[str]) -> None:
        (extras,) = re.findall(r"^\.\[(.*)\]$", words[-1])
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras.split(","))


@cache
def kubectl_options(verb: str) -> set[str]:
    """The options of a verb, by the help of the real kubectl; without it, those that the pages use."""
    if shutil.which("kubectl") is None:
        return {"filename", "kustomize", "type", "patch", "selector"}
    told = subprocess.run(["kubectl", *verb.split(), "--help"], capture_output=True, text=True, timeout=60, check=False)
    return set(re.findall(r"--([\w-]+)=", told.stdout))


@each("page", PAGES)
def test_each_command_is_one_that_the_repository_can_answer(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(page)
    assert found, page
    state = Page(tmp_path, capsys)
    for words in found:
        try:
            state.check(words)
        except (AssertionError, AttributeError, SystemExit) as error:
            raise AssertionError(f"{page}.md: {shlex.join(words)}: {error!r}") from error


@each("page", PAGES)
def test_each_file_that_a_page_links_to_is_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (OPERATE / f"{page}.md").read_text()):
        assert (OPERATE / target).exists(), target
