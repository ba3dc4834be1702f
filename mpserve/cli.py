"""The ``mpserve`` command."""

import argparse
import difflib
import logging
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mpserve.compat import lending
from mpserve.config.options import options_of
from mpserve.config.settings import KSERVE_FLAGS_IGNORED, Settings, argument_parser, parse
from mpserve.errors import AcceleratorInArbiter, ConfigurationError
from mpserve.prefork.arbiter import torch_cuda
from mpserve.prefork.arbiter.application import serve
from mpserve.prefork.worker import threads
from mpserve.server import find
from mpserve.serving.repository.import_target import starts_server
from mpserve.telemetry.logging import configure
from mpserve.version import VERSION

logger = logging.getLogger("mpserve")

USAGE = """mpserve serve TARGET [options]

TARGET is one of
  model.py:Class            a subclass of mpserve.Model (or an instance of one)
  package.module:object     the same, imported
  model.py                  a file that holds one model, or a pair of functions load and predict
  script.py                 a script that ends in ModelServer(...).start([...])
  package/__main__.py       the same, run as python -m package
  model.joblib              a model file of a known format (docs/files.md)
  folder                    a folder with one of these, or with folders of these, named model, model@version or model/1
  https://host/model.py     or s3://, gs://, az://, hf://ORG/NAME: fetched first, and so is the address in --model_dir
Without TARGET, --model_dir names such a folder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command. Raises SystemExit, with status 2 for a mistake in the command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(arguments):
        argparse.ArgumentParser("mpserve", usage=USAGE, parents=[argument_parser()]).print_help()
    elif arguments[:1] in (["--version"], ["-V"]):
        print(f"mpserve {VERSION}")
    elif arguments[:1] == ["serve"]:
        try:
            _serve(arguments[1:])
        except ConfigurationError as error:
            _fail(str(error))
    else:
        mistake = f"there is no command {arguments[0]!r}" if arguments else "a command is missing"
        if arguments and ".py" in arguments[0]:
            mistake += f"; to serve it: mpserve serve {arguments[0]}"
        _fail(f"{mistake}\n\nusage: {USAGE}\n\nmpserve --help lists the options.")


def _fail(reason: str) -> None:
    print(f"mpserve: {reason}", file=sys.stderr)
    sys.exit(2)


def _serve(arguments: Sequence[str]) -> None:
    settings, ignored, unknown = parse(arguments)
    configure(settings)
    script = Path(settings.target) if settings.target is not None and settings.target.endswith(".py") else None
    if script is not None and starts_server(script):
        lending.lend(instead=settings.kserve_names)
        _run_script(script, arguments)
        return
    for flag in ignored:
        logger.warning("--%s has no effect: %s", flag, KSERVE_FLAGS_IGNORED[flag])
    if unknown:
        logger.warning("unknown arguments ignored: %s%s", " ".join(unknown), _meant(unknown))
    serve(settings, find, lending.wrap)


def _meant(unknown: Sequence[str]) -> str:
    """The flags that the user may have meant: flags of a similar spelling, or flags with the same last word."""
    known = sorted({spelling for option in options_of(Settings) for spelling in option.spellings})
    meant: list[str] = []
    for flag in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        close = difflib.get_close_matches(flag, known, n=1, cutoff=0.8)
        meant += close or [spelling for spelling in known if spelling.endswith(flag.replace("--", "_"))]
    return f" (is {' or '.join(meant)} meant?)" if meant else ""


def _run_script(script: Path, arguments: Sequence[str]) -> None:
    """Run a script as ``python script.py`` would, or a package's ``__main__.py`` as ``python -m package`` would.

    CUDA is guarded before the first line of the script.
    """
    threads.hold_to_one(os.environ)
    torch_cuda.arm()
    sys.argv = [str(script), *(argument for argument in arguments if argument != str(script))]
    folder, package = script.resolve().parent, ""
    while script.name == "__main__.py" and (folder / "__init__.py").is_file():
        folder, package = folder.parent, f"{folder.name}.{package}" if package else folder.name
    sys.path.insert(0, str(folder))
    try:
        if package:
            runpy.run_module(package, run_name="__main__")
        else:
            runpy.run_path(str(script), run_name="__main__")
    except AcceleratorInArbiter as error:
        raise ConfigurationError(str(error)) from None
