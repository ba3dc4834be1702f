"""One server of ``mpserve dev``, in an interpreter of its own: ``python -m mpserve.commands.watched FD [words of serve]``.

It writes a byte to the file descriptor FD when its door is open.
"""

import os
import sys

from mpserve.cli import main
from mpserve.prefork.worker import announcement

if __name__ == "__main__":
    opened = int(sys.argv[1])
    announcement.when_open.append(lambda: os.write(opened, b"."))
    sys.argv[1:] = ["serve", *sys.argv[2:]]
    main()
