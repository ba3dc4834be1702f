"""What all tests of model files share."""

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="module")
def one_native_thread() -> Iterator[None]:
    """The libraries compute in one thread, in the tests' own process. Servers have their own number.

    The models are tiny, so the threads of a library mostly wait for each other, and the longer the busier the machine is:
    training a network of 32 numbers took 21 s with two threads and 0.4 s with one, beside seven other runs of tests.
    """
    with threadpool_limits(1):
        yield
