"""The help texts: of the commands, of the common options of a server, and of all of them.

Colour is for terminals alone, and not where NO_COLOR is set.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping

from mpserve.config.options import BYTES, SWITCH, Option, options_of
from mpserve.config.settings import Settings

COMMON = (
    "model_dir", "model_name", "host", "http_port", "grpc_port", "workers", "devices", "max_batch_size",
    "request_timeout", "enable_docs_url", "log_level", "log_format", "access_log",
)  # fmt: skip
"""The options of the short help."""

WIDEST = 100
COLUMN = 26

TARGETS = {
    "model.py:Class": "a subclass of mpserve.Model, or an instance of one",
    "package.module:object": "the same, imported",
    "model.py": "a file with one model, or with functions load and predict",
    "script.py": "a script that ends in ModelServer(...).start([...])",
    "model.joblib": "a model file of a known format (docs/reference/files.md)",
    "folder": "one of these, or folders of these: model, model@version, model/1",
    "https://host/model.py": "or s3://, gs://, az://, hf://ORG/NAME: fetched first",
}
"""What a TARGET may be."""


def of_commands(commands: Mapping[str, str]) -> str:
    """The help of ``mpserve``: its commands, each with what it does."""
    lines = [f"{_heading('Usage:')} mpserve COMMAND [options]", "", _heading("Commands")]
    lines += [line for name, summary in commands.items() for line in _entry(name, summary)]
    return "\n".join([*lines, "", "mpserve COMMAND --help explains a command."])


def of_command(name: str, summary: str, own: Iterable[Option], all_options: bool, targets: bool = True) -> str:
    """The help of a command that takes a TARGET and the options of a server."""
    lines = [f"{_heading('Usage:')} mpserve {name} {'TARGET ' if targets else ''}[options]", "", f"{summary}.", ""]
    if targets:
        lines += [_heading("TARGET"), *(line for form, what in TARGETS.items() for line in _entry(form, what)), ""]
    own = tuple(own)
    few = COMMON[:2] if own else COMMON  # what is left of the screen
    options = [each for each in options_of(Settings) if each.flag and (all_options or each.name in few)]
    group = ""
    for option in (*own, *options):
        if option.group != group:
            group = option.group
            lines += [*([""] if lines[-1] else []), _heading(group)]
        lines += _option(option, all_options)
    if not all_options:
        lines += ["", f"mpserve {name} --help-all lists all {len(options_of(Settings)) - 1} options of a server."]
    return "\n".join(lines)


def _option(option: Option, whole: bool) -> list[str]:
    value = (
        ""
        if option.kind is SWITCH
        else " " + ("FILE" if option.name.endswith("file") else option.kind.type.__name__.upper())
    )
    value = value.replace("STR", "TEXT").replace("INT", "N").replace("FLOAT", "N")
    notes = [option.help if whole else option.help.partition("; ")[0]]
    if option.choices:
        notes.append(f"({'|'.join(option.choices)})")
    if option.default not in (None, False):
        notes.append(f"[{_bytes(option.default) if option.kind is BYTES else str(option.default).lower()}]")
    if whole and option.env:
        notes.append(f"(env: {', '.join(option.env)})")
    return _entry(f"{option.flag}{value}", " ".join(notes))


def _bytes(count: object) -> str:
    assert isinstance(count, int)
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _entry(name: str, text: str) -> list[str]:
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns) - COLUMN - 2
    first, *rest = textwrap.wrap(text, max(width, 30), break_on_hyphens=False)
    indent = " " * (COLUMN + 2)
    if len(name) >= COLUMN:
        return [f"  {_name(name)}", indent + first, *(indent + line for line in rest)]
    return [f"  {_name(name)}{' ' * (COLUMN - len(name))}{first}", *(indent + line for line in rest)]


def _coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _heading(text: str) -> str:
    return f"\033[1m{text}\033[0m" if _coloured() else text


def _name(text: str) -> str:
    return f"\033[36m{text}\033[0m" if _coloured() else text
