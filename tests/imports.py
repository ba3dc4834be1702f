"""What tests import from their folders."""

import sys
from pathlib import Path


def forget(folder: Path) -> None:
    """Let the next test that has a file of the same name not find what was imported from ``folder``."""
    for name, module in list(sys.modules.items()):
        if str(folder) in str(getattr(module, "__file__", None) or getattr(module, "__path__", "")):
            del sys.modules[name]
