"""``python -m mpserve`` is the ``mpserve`` command."""

import sys

from mpserve.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    # On USR2 gunicorn runs sys.argv again. Run as a file, this one would put its folder first on sys.path, and with it
    # modules that are named like standard ones (logging, http).
    sys.argv = ["-m", "mpserve", *arguments]
    main(arguments)
