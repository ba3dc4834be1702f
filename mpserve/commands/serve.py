"""``mpserve serve``: serves a TARGET until the server is stopped, or runs the script that starts a server."""

import logging
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mpserve.commands.arguments import meant, refuse
from mpserve.compat import lending
from mpserve.config.command_line import KSERVE_FLAGS_IGNORED, parse
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, MPServeError
from mpserve.prefork.arbiter import torch_cuda
from mpserve.prefork.arbiter.application import serve
from mpserve.prefork.worker import threads
from mpserve.server import find
from mpserve.serving.repository.import_target import script_of
from mpserve.telemetry.logging import configure, users_traceback

logger = logging.getLogger("mpserve")

OWN = ()


def run(arguments: Sequence[str]) -> int:
    """Serve until the end. Raises ConfigurationError for a mistake in the command line."""
    settings, ignored, unknown = parse(arguments)
    configure(settings)
    script = script_of(settings.target)
    if script is not None:  # it parses its own flags
        lending.lend(before_sdk=settings.kserve_names)
        _run_script(script, arguments)
        return 0
    if not settings.ignore_unknown_flags:
        refuse(unknown)
    for flag in ignored:
        logger.warning("--%s has no effect: %s", flag, KSERVE_FLAGS_IGNORED[flag])
    if unknown:
        logger.warning("unknown arguments ignored: %s%s", " ".join(unknown), meant(unknown))
    serve(settings, find, lending.wrap)
    return 0


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
    except MPServeError:
        raise
    except Exception as error:
        print(users_traceback(error), file=sys.stderr)
        sys.exit(1)
