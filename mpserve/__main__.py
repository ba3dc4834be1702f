"""``python -m mpserve`` is the ``mpserve`` command."""

import sys

from mpserve.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    # On USR2 gunicorn runs sys.argv again. Without -m, this folder would be first on sys.path, and http would mean mpserve/http.
    sys.argv = ["-m", "mpserve", *arguments]
    main(arguments)
