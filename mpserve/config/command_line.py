"""The command line of the server, and ``docs/reference/options.md``, which ``python -m mpserve.config.command_line`` prints."""

import argparse
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mpserve.config.options import TEXT, Option, build_parser, markdown, options_of, read_words
from mpserve.config.settings import Settings

_OWN_THREAD = "sync models run in a thread of their own"
_LOGGING = "use --log_config_file, --log_format and --access_log"

KSERVE_FLAGS_IGNORED: dict[str, str] = {
    "max_threads": "gRPC runs on the event loop",
    "max_asyncio_workers": _OWN_THREAD,
    "enable_latency_logging": "durations are in /metrics",
    "configure_logging": _LOGGING,
    "access_log_format": _LOGGING,
    "protocol": "V1 and V2 are always both offered",
}
"""Flags of the kserve SDK that are accepted and have no effect -> the reason."""


_IGNORED = tuple(
    Option(name, None, TEXT, "Without effect", reason, f"--{name}") for name, reason in KSERVE_FLAGS_IGNORED.items()
)


class Parsed(NamedTuple):
    """A parsed command line. ``ignored`` are keys of KSERVE_FLAGS_IGNORED, ``unknown`` are words that mpserve does not know."""

    settings: Settings
    ignored: list[str]
    unknown: list[str]


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ, **overrides: Any) -> Parsed:
    """Parse a command line (without the program's name): defaults < ``environ`` < ``argv`` < ``overrides`` that are not None.

    The first word without a flag is the target. The caller decides whether unknown words are an error. ``overrides`` may have
    keys of KSERVE_FLAGS_IGNORED. Raises ConfigurationError.
    """
    options, words, unknown = read_words((*options_of(Settings), *_IGNORED), argv)
    values: dict[str, Any] = {**options, **{name: value for name, value in overrides.items() if value is not None}}
    if words:
        values.setdefault("target", words[0])
    ignored = [name for name in values if name in KSERVE_FLAGS_IGNORED]
    settings = Settings.from_environment(environ, **{name: values[name] for name in values.keys() - set(ignored)})
    return Parsed(settings, ignored, [*unknown, *words[1:]])


def argument_parser(leave_out: Collection[str] = ()) -> argparse.ArgumentParser:
    """An argparse parser of all flags but ``leave_out``, without ``--help``: for help texts, and as a parent of other parsers."""
    parser = build_parser([each for each in (*options_of(Settings), *_IGNORED) if each.name not in leave_out])
    if "model_name" not in leave_out:
        parser.set_defaults(model_name="model")  # the SDK's default, which scripts read
    return parser


def documentation() -> str:
    """The text of ``docs/reference/options.md``."""
    ignored = "".join(f"| `--{name}` | {reason} |\n" for name, reason in KSERVE_FLAGS_IGNORED.items())
    return f"""# Options

Written by `python -m mpserve.config.command_line > docs/reference/options.md`.

The value of an option comes from its default, the environment, the command line or the arguments of `ModelServer(...)`. The
later of these wins. Flags may have underscores or dashes, and a space or a `=` before the value. An empty variable counts as
not set, and so does one that Kubernetes sets for a Service (`MPSERVE_HTTP_PORT=tcp://10.43.7.9:80`). Of several variables the
first that is set counts. An unknown flag is an error, unless the TARGET is a script that reads flags of its own. With
`--ignore_unknown_flags`, it is reported and ignored together with the word after it, so write `--flag=value` or put the target
first.

{markdown(options_of(Settings))}
## Flags of the kserve SDK without effect

The server accepts these flags, so that a container's arguments need not change, and reports them at start.

| Flag | Why |
|---|---|
{ignored}"""


if __name__ == "__main__":
    print(documentation(), end="")
