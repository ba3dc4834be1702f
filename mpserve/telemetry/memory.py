"""How much memory this process uses."""

import os
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident() -> int:
    """Bytes of this process in memory (RSS), those included that it shares with other processes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
