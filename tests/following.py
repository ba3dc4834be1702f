"""Follows a page as its reader does: writes its files, runs its commands, and compares the answers that it shows.

A block whose first line is a comment with the name of a file, such as ``# model.py``, is that file. ``mpserve serve`` and
``mpserve dev`` run until the next one. Behind the commands of a ``sh`` block may stand a ``json`` or a ``text`` block: what they
print, or what the server logs if they print nothing. ``...`` in it stands for anything.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.documents import ROOT, Block, commands_of, own_blocks, reason_not_to_run
from tests.running import Server, eventually, free_port, running

FILE = re.compile(r"# ([\w-]+\.(?:py|toml|yaml|conf))(?:[:,].*)?$", re.MULTILINE)
SERVES = re.compile(r"(?:\w+=\S* )*mpserve (?:serve|dev)\b")
PORT = re.compile(r"(localhost:|_port[ =])(80\d\d)\b")
PROGRAMS = {
    "mpserve": f'exec {sys.executable} -m mpserve "$@"',
    "python": f'exec {sys.executable} "$@"',
    "python3": f'exec {sys.executable} "$@"',
    "pip": f'exec {sys.executable} -m pip "$@"',
    "curl": 'exec /usr/bin/env PATH="${PATH#*:}" curl --silent --fail-with-body "$@"',
}
"""What the reader's environment has, and a ``curl`` that fails for a status of 400 or more."""


REFUSED = 22
"""The exit status of curl for a status of 400 or more."""


class Reader:
    """Someone who follows pages in a folder of their own."""

    def __init__(self, folder: Path, stack: ExitStack, runs: Callable[[str], bool] | None = None) -> None:
        self.folder = folder
        self.stack = stack
        self.runs = runs or (lambda command: reason_not_to_run(command) is None)
        self.ports: dict[str, str] = {}
        self.servers: dict[str, Server] = {}
        self.is_dev = False
        self.variables = folder / ".variables"
        self.programs = folder / ".programs"
        self.programs.mkdir()
        for name, line in PROGRAMS.items():
            (self.programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (self.programs / name).chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("MPSERVE_", "GUNICORN_"))},
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PIP_NO_BUILD_ISOLATION": "no",  # pip builds a package of the page by what is here
            "PYTHONDONTWRITEBYTECODE": "1",  # a file that is written twice within a second would be read once
        }

    def follow(self, page: Path) -> None:
        shown = own_blocks(page)
        for index, block in enumerate(shown):
            if name := FILE.match(block.text):
                (self.folder / name[1]).write_text(self.local(block.text))
            elif block.language == "sh":
                answer = shown[index + 1] if index + 1 < len(shown) else Block("", "")
                self.run(block, answer if answer.language in ("json", "text") else Block("", ""))

    def local(self, text: str) -> str:
        """The text with ports that are free here."""
        return PORT.sub(lambda found: found[1] + self.ports.setdefault(found[2], str(free_port())), text)

    def run(self, block: Block, shown: Block) -> None:
        """Run the commands of a block. What they print must be what is shown."""
        printed, server = "", None
        commands = [command for command in commands_of(block) if self.runs(command)]
        for command in commands:
            if SERVES.match(command):
                server = self.start(self.local(command))
            else:
                printed += self.call(self.local(command), may_be_refused='"error"' in shown.text)
        if not shown.text or not commands:
            return
        if not printed and server is not None:
            log = self.local(shown.text).replace("localhost", "127.0.0.1")
            eventually(lambda: not missing(log, server.log))
            return
        last = commands[-1]
        if last.startswith("curl ") and (
            self.is_dev or "/metrics" in last
        ):  # these take a moment: the reader asks again
            with contextlib.suppress(AssertionError):
                eventually(lambda: is_as_shown(self.call(self.local(last)), shown))
            printed = self.call(self.local(last))
        assert is_as_shown(printed, shown), f"{block.text}\nshown:\n{shown.text}\nprinted:\n{printed}"

    def call(self, command: str, may_be_refused: bool = False) -> str:
        """What a command prints. Its variables are there for the next one."""
        before = f"set -a; test -f {self.variables} && . {self.variables};"
        script = f"{before} {command}\nstatus=$?; export -p > {self.variables}; exit $status"
        run = subprocess.run(["bash", "-c", script], cwd=self.folder, env=self.environment, capture_output=True, text=True,
                             timeout=120, check=False)  # fmt: skip
        logs = "".join(server.log for server in self.servers.values())
        refused = may_be_refused and run.returncode == REFUSED and command.startswith("curl ")
        assert run.returncode == 0 or refused, f"{command}\n{run.stdout}{run.stderr}\n{logs}"
        return run.stdout

    def start(self, command: str) -> Server:
        """Run a server until the next one on its port."""
        found = re.search(r"--http_port[ =](\d+)", command)
        port = found[1] if found else self.ports.setdefault("8080", str(free_port()))
        if port in self.servers:
            self.servers[port].stop()
        self.is_dev = "mpserve dev" in command
        before = f"set -a; test -f {self.variables} && . {self.variables};"
        script = ["bash", "-c", f"{before} exec {command}"]
        env = {**self.environment, "MPSERVE_HTTP_PORT": port}
        server = self.stack.enter_context(running(script, self.folder, int(port), env))
        self.servers[port] = server
        return server.wait_ready()


def decoded(text: str) -> list[Any]:
    """The JSON documents that stand in it one after the other; the last digits of a float are the CPU's own."""
    decoder = json.JSONDecoder(parse_float=lambda number: round(float(number), 4))
    found, rest = [], text.lstrip()
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def is_as_shown(printed: str, shown: Block) -> bool:
    if shown.language == "json" and "..." not in shown.text:
        with contextlib.suppress(json.JSONDecodeError):
            return decoded(printed) == decoded(shown.text)
    return pattern_of(shown.text.strip()).fullmatch(printed.strip()) is not None


def pattern_of(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("...")), re.DOTALL)


def missing(shown: str, log: str) -> list[str]:
    """The lines that are shown and not in the log."""
    return [line for line in shown.splitlines() if not pattern_of(line.strip()).search(log)]
