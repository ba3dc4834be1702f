"""Gives a process random numbers of its own. A fork copies the random state of the arbiter into every worker.

This module imports no framework; it uses torch if the user's code has imported it.
"""

import random
import sys

from numpy.random import mtrand


def reseed() -> None:
    """Seed the global generators of Python, numpy and torch with numbers of the operating system."""
    random.seed()
    # Not numpy.random.seed(), which fails if the user has chosen another kind of generator.
    mtrand.set_bit_generator(type(mtrand.get_bit_generator())())
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.seed()  # also the generators of the GPUs, now or when CUDA begins
