"""Reads the command line of a command strictly: a word that nobody knows is a mistake, and the message says what may be meant."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from mpserve.config.options import Option, options_of, read_words
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError

ELSEWHERE = {
    "-b": "--host and --http_port", "--bind": "--host and --http_port", "-p": "--http_port", "--port": "--http_port",
    "-w": "--workers", "-t": "--timeout", "-n": "--model_name", "--name": "--model_name", "--reload": "mpserve dev TARGET",
    "--timeout_graceful_shutdown": "--graceful_timeout", "--limit_max_requests": "--max_requests", "--keep_alive":
    "--timeout-keep-alive", "-v": "--log_level=debug", "--verbose": "--log_level=debug", "--debug": "--log_level=debug",
}  # fmt: skip
"""Flags of other servers -> what does the same here."""


class Line(NamedTuple):
    """The command line of a command besides ``serve``: the server's options and the command's own, checked, and the former
    as they were typed.
    """

    settings: Settings
    own: dict[str, Any]
    given: dict[str, str]


def read(arguments: Sequence[str], own: Sequence[Option] = (), **defaults: Any) -> Line:
    """Read a command line of options of the server and of the command, with other ``defaults`` of the former.
    Raises ConfigurationError for any other word.
    """
    options, words, unknown = read_words((*options_of(Settings), *own), arguments)
    refuse([*unknown, *words[1:]], own)
    values = {each.name: each.check(options.pop(each.name, each.default)) for each in own}
    overrides: dict[str, Any] = {**defaults, "target": words[0] if words else None, **options}
    return Line(Settings.from_environment(**overrides), values, options)


def refuse(unknown: Sequence[str], own: Iterable[Option] = ()) -> None:
    """Raises ConfigurationError if there are words that mpserve does not know."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if flags:
        hint = meant(unknown, own)
        raise ConfigurationError(
            f"there is no flag {' '.join(flags)}{hint or ';'} mpserve serve --help-all lists the flags"
        )
    if unknown:
        raise ConfigurationError(f"expected one TARGET, got another word: {' '.join(unknown)}")


def meant(unknown: Sequence[str], own: Iterable[Option] = ()) -> str:
    """What the user may have meant: flags of a similar spelling or with the same last word, or another server's flag."""
    known = sorted({spelling for option in (*options_of(Settings), *own) for spelling in option.spellings})
    hints: list[str] = []
    for flag in (word.partition("=")[0] for word in unknown if word.startswith("-")):
        other = ELSEWHERE.get(flag) or ELSEWHERE.get(f"--{flag[2:].replace('-', '_')}")
        hints += [other] if other else _similar(flag, known)
    return f"; did you mean {' or '.join(dict.fromkeys(hints))}?" if hints else ""


def _similar(flag: str, known: Sequence[str]) -> list[str]:
    if not flag.startswith("--"):
        return []
    close = difflib.get_close_matches(flag, known, n=1, cutoff=0.75)
    return close or [spelling for spelling in known if spelling.endswith(flag.replace("--", "_"))][:3]
