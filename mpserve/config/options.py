"""Options: a dataclass field that becomes a flag, an environment variable and a line of the documentation.

This module reads and checks options. It must not know the options themselves, which are in ``mpserve.config.settings``.
"""

import argparse
import dataclasses
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from mpserve.errors import ConfigurationError

T = TypeVar("T")

BOOLEANS: Mapping[str, bool] = {  # the kserve SDK's strtobool
    **dict.fromkeys(("y", "yes", "t", "true", "on", "1"), True),
    **dict.fromkeys(("n", "no", "f", "false", "off", "0"), False),
}
_SIZE_UNITS = {prefix: power for power, prefix in enumerate(("", "k", "m", "g", "t"))}


def boolean(text: str) -> bool:
    """Read a boolean as the kserve SDK does. Raises ValueError."""
    if text.lower() not in BOOLEANS:
        raise ValueError(text)
    return BOOLEANS[text.lower()]


def byte_size(text: str) -> int:
    """Read a number of bytes such as ``1000``, ``64MiB``, ``64Mi``, ``1GB`` or ``1G``. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ValueError(text)
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _SIZE_UNITS[match[2]])


def _text(text: str) -> str:
    if not text:
        raise ValueError(text)
    return text


@dataclass(frozen=True)
class Kind:
    """A kind of value: its Python type, its description, and a function that reads it or raises ValueError."""

    type: type
    expected: str
    read: Callable[[str], object]


TEXT = Kind(str, "a text that is not empty", _text)
CHOICE = Kind(str, "one of", str.lower)
WHOLE = Kind(int, "a whole number", int)
NUMBER = Kind(float, "a number", float)
SWITCH = Kind(bool, "true or false", boolean)
BYTES = Kind(int, "a number of bytes such as 1048576 or 64MiB", byte_size)

_KIND_OF_DEFAULT = {str: TEXT, int: WHOLE, float: NUMBER, bool: SWITCH, type(None): TEXT}


@dataclass(frozen=True)
class Option:
    """One option. ``flag`` is its canonical spelling, or None. Of the variables ``env``, the first that is set counts."""

    name: str
    default: object
    kind: Kind
    group: str
    help: str
    flag: str | None = ""
    env: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf

    @property
    def spellings(self) -> tuple[str, ...]:
        """The flag as declared, then with dashes only and with underscores only."""
        if self.flag is None:
            return ()
        body = self.flag[2:]
        return tuple(dict.fromkeys((self.flag, f"--{body.replace('_', '-')}", f"--{body.replace('-', '_')}")))

    @property
    def expected(self) -> str:
        """The description of a valid value."""
        if self.choices:
            return f"{self.kind.expected} {', '.join(self.choices)}"
        if math.isfinite(self.maximum):
            return f"{self.kind.expected} from {self.minimum:g} to {self.maximum:g}"
        return f"{self.kind.expected}, at least {self.minimum:g}" if math.isfinite(self.minimum) else self.kind.expected

    def check(self, value: object) -> object:
        """Return the value in the option's type, read from a text if it is a text. Raises ConfigurationError."""
        try:
            return self._read(value)
        except (ValueError, OverflowError):
            names = ", ".join(filter(None, (self.flag, *self.env)))
            raise ConfigurationError(f"{self.name} ({names}): got {value!r}, expected {self.expected}") from None

    def _read(self, value: object) -> object:
        if value is None and self.default is None:
            return None
        if isinstance(value, (str, os.PathLike)):
            value = self.kind.read(os.fspath(value))
        elif self.kind.type is float and type(value) is int:
            value = float(value)
        # Not isinstance, since True is an int too.
        if type(value) is not self.kind.type or (self.choices and value not in self.choices):
            raise ValueError
        if isinstance(value, (int, float)) and not (math.isfinite(value) and self.minimum <= value <= self.maximum):
            raise ValueError
        return value


def option(
    default: T,
    group: str,
    help: str,
    *,
    flag: str | None = "",
    env: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    minimum: float = -math.inf,
    maximum: float = math.inf,
    kind: Kind | None = None,
) -> T:
    """Declare a dataclass field as an option.

    By default ``flag`` is ``--<name>``; None means a positional argument. ``env`` has further variables after
    ``MPSERVE_<NAME>``. By default ``kind`` is inferred from ``default``.
    """
    kind = kind or (CHOICE if choices else _KIND_OF_DEFAULT[type(default)])
    declared = Option("", default, kind, group, help, flag, env, choices, minimum, maximum)
    field: T = dataclasses.field(default=default, metadata={"option": declared})
    return field


def options_of(declaring: type) -> tuple[Option, ...]:
    """The options of a dataclass, in order, with their names, flags and variables."""
    return tuple(_add_name(field.name, field.metadata["option"]) for field in dataclasses.fields(declaring))


def _add_name(name: str, declared: Option) -> Option:
    flag = f"--{name}" if declared.flag == "" else declared.flag
    return dataclasses.replace(declared, name=name, flag=flag, env=(f"MPSERVE_{name.upper()}", *declared.env))


def read_environment(options: Iterable[Option], environ: Mapping[str, str]) -> dict[str, str]:
    """The options that the environment sets, as texts. An empty variable, and one that Kubernetes has set, count as not set."""
    environ = {name: text for name, text in environ.items() if not _is_service(name, text)}
    texts = {option.name: next(filter(None, map(environ.get, option.env)), None) for option in options}
    return {name: text for name, text in texts.items() if text is not None}


def service_links(options: Iterable[Option], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of options that Kubernetes has set, because a Service of the namespace has such a name."""
    names = [name for option in options for name in option.env]
    return {name: environ[name] for name in names if _is_service(name, environ.get(name, ""))}


def others_of(prefix: str, options: Iterable[Option], environ: Mapping[str, str]) -> list[str]:
    """The variables that are set and begin so, and are of no option."""
    ours = {name for option in options for name in option.env}
    return sorted(name for name, text in environ.items() if name.startswith(prefix) and text and name not in ours)


def _is_service(name: str, text: str) -> bool:
    """Whether Kubernetes has set the variable: a Service called x-http gives each pod X_HTTP_PORT=tcp://10.43.7.9:80."""
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text) is not None


class Words(NamedTuple):
    """The parts of a command line. ``unknown`` has unknown flags and their values."""

    options: dict[str, str]
    positionals: list[str]
    unknown: list[str]


def read_words(options: Iterable[Option], argv: Sequence[str]) -> Words:
    """Split a command line. Raises ConfigurationError for a flag whose value is missing.

    The word after an unknown flag is the value of the flag, and the word after a switch is its value only if it is a boolean.
    argparse would take the value of an unknown flag for the positional argument.
    """
    flags = {spelling: option for option in options for spelling in option.spellings}
    result = Words({}, [], [])
    words = deque(argv)
    while words:
        word = words.popleft()
        flag, equals, value = word.partition("=")
        if word == "--":
            result.positionals.extend(words)
            break
        if not _is_flag(word):
            result.positionals.append(word)
        elif flag in flags:
            result.options[flags[flag].name] = value if equals else _value_of(flag, flags[flag], words)
        else:
            result.unknown.append(word)
            if not equals and words and not _is_flag(words[0]):
                result.unknown.append(words.popleft())
    return result


def _is_flag(word: str) -> bool:
    return re.match(r"-(?![0-9.]|$)", word) is not None


def _value_of(flag: str, option: Option, words: deque[str]) -> str:
    if option.kind is SWITCH:
        return words.popleft() if words and words[0].lower() in BOOLEANS else "true"
    if not words or _is_flag(words[0]):
        raise ConfigurationError(f"{flag}: got no value, expected {option.expected}")
    return words.popleft()


def build_parser(options: Iterable[Option]) -> argparse.ArgumentParser:
    """An argparse parser of the options, for help texts and as a parent of other parsers."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    groups: dict[str, Any] = {}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        details: dict[str, Any] = {"default": option.default, "type": option.kind.read, "help": _help(option)}
        if option.choices:
            details["choices"] = option.choices
        if option.flag is None:
            details |= {"nargs": "?", "metavar": option.name.upper()}
        elif option.kind is SWITCH:
            details |= {"nargs": "?", "const": True, "metavar": "BOOL"}
        groups[option.group].add_argument(*(option.spellings or (option.name,)), **details)
    return parser


def _help(option: Option) -> str:
    notes = [] if option.default is None else [f"default: {str(option.default).lower()}"]
    notes += [f"env: {', '.join(option.env)}"] if option.env else []
    # argparse formats its help texts with %.
    return (f"{option.help} ({'; '.join(notes)})" if notes else option.help).replace("%", "%%")


def markdown(options: Iterable[Option]) -> str:
    """The options as Markdown: a heading and a table for each group."""
    lines: list[str] = []
    group = None
    for option in options:
        if option.group != group:
            group = option.group
            lines += ["", f"## {group}", "", "| Flag | Environment | Default | Meaning |", "|---|---|---|---|"]
        flag = f"`{option.flag}`" if option.flag else f"`{option.name.upper()}` (a word without a flag)"
        env = ", ".join(f"`{name}`" for name in option.env)
        default = "" if option.default is None else f"`{str(option.default).lower()}`"
        choices = f" One of {', '.join(f'`{choice}`' for choice in option.choices)}." if option.choices else ""
        lines.append(f"| {flag} | {env} | {default} | {option.help}.{choices} |")
    return "\n".join(lines[1:]) + "\n"
