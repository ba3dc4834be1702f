"""The ``mpserve`` command: finds the module of a command in ``mpserve/commands`` and runs it."""

import difflib
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from mpserve.commands import helping
from mpserve.errors import ConfigurationError
from mpserve.version import VERSION

COMMANDS = {
    "serve": "Serve models until the server is stopped",
    "dev": "Serve models, and anew whenever a file changes",
    "test": "Load the models without a server, ask each of them, and report",
    "doctor": "Look at this machine as a server would, and say what is wrong",
    "manifest": "Print an InferenceService for KServe",
    "completion": "Print a script that lets a shell complete the words of this command",
    "version": "Print the version",
}
"""Each is a module of ``mpserve.commands`` with ``OWN``, its own options, and ``run``, which returns the exit status."""

UNTARGETED = ("doctor",)
"""Commands that take no TARGET."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises SystemExit, with status 2 for a mistake in the command line."""
    try:
        _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # mpserve --help | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _main(argv: Sequence[str] | None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:  # "help serve" is "serve --help"
        arguments = [*arguments[1:2], "--help"]
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help"):
        print(helping.of_commands(COMMANDS))
    elif command in ("-V", "--version", "version"):
        print(f"mpserve {VERSION}")
    elif command in COMMANDS:
        status = _run(command, arguments[1:])
        if status:
            sys.exit(status)
    else:
        _fail(f"{_mistake(command)}\n\n{helping.of_commands(COMMANDS)}")


def _run(command: str, arguments: Sequence[str]) -> int:
    module = import_module(f"mpserve.commands.{command}")
    whole = "--help-all" in arguments or "--help_all" in arguments
    if whole or {"-h", "--help"} & set(arguments):
        of_servers = partial(helping.of_command, command, COMMANDS[command], module.OWN)
        print(getattr(module, "HELP", "") or of_servers(whole, command not in UNTARGETED))
        return 0
    try:
        status: int = module.run(arguments)
    except ConfigurationError as error:
        _fail(str(error))
    return status


def _mistake(command: str) -> str:
    if not command:
        return "a command is missing"
    if ".py" in command or Path(command).exists():
        return f"there is no command {command!r}; to serve it: mpserve serve {command}"
    close = difflib.get_close_matches(command, COMMANDS, n=1)
    return f"there is no command {command!r}" + (f"; did you mean {close[0]}?" if close else "")


def _fail(reason: str) -> NoReturn:
    text = f"mpserve: {reason}"
    if sys.stderr.isatty():
        from mpserve.telemetry.logging import folded  # which imports much

        text = folded(text)
    print(text, file=sys.stderr)
    sys.exit(2)
