"""One server of ``mpserve dev``: ``python -m mpserve.commands.watched GO OPEN FILE [words of serve]``.

It imports the server and none of the user's code, and waits for a byte from the file descriptor GO: so the models load at once
when a file was saved. It writes a byte to OPEN when its door is open. Its status page shows what is in FILE: why the code that
was saved since then cannot be served.
"""

import os
import sys
from importlib import import_module
from pathlib import Path

from mpserve.cli import main
from mpserve.prefork.worker import announcement
from mpserve.serving.extensions import status

AHEAD = ("mpserve.commands.serve", "mpserve.http.app", "mpserve.prefork.worker.gunicorn_worker", "gunicorn.arbiter")
"""What every server imports."""

if __name__ == "__main__":
    go, opened = map(int, sys.argv[1:3])
    reason = Path(sys.argv[3])
    announcement.when_open.append(lambda: os.write(opened, b"."))
    status.notices.append(lambda: f"What was saved is not served: {text}" if (text := reason.read_text()) else "")
    sys.argv[1:] = ["serve", *sys.argv[4:]]
    for module in AHEAD:
        import_module(module)
    if os.read(go, 1):  # nothing: ``mpserve dev`` is gone
        main()
