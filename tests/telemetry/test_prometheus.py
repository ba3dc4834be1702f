"""What mpserve uses inside prometheus_client is tried at the start: a release that is another inside is refused in words."""

import subprocess
import sys

import pytest

from mpserve.telemetry import prometheus

PROGRAM = """
import types
from prometheus_client import metrics, values
from mpserve.telemetry import prometheus

init = metrics.Histogram._metric_init

def renamed(self):
    init(self)
    self._cells = self._buckets
    del self._buckets

def cumulative(self, amount):
    self._sum.inc(amount)
    for bound, bucket in zip(self._upper_bounds, self._buckets):
        bucket.inc(amount <= bound)

{change}
prometheus.check()
"""


def test_the_installed_release_is_as_it_was_read() -> None:
    prometheus.check()


@pytest.mark.parametrize("change", [
    pytest.param("metrics.Histogram._metric_init = renamed", id="another name"),
    pytest.param("values.MutexValue.inc = lambda self, amount: None", id="sums of another kind"),
    pytest.param("metrics.Histogram.observe = cumulative", id="cumulative buckets"),
    pytest.param("metrics.values = types.SimpleNamespace(ValueClass=values.MutexValue)", id="values chosen elsewhere"),
])  # fmt: skip
def test_one_that_is_another_inside_is_refused_in_words(change: str) -> None:
    program = PROGRAM.format(change=change)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "by which mpserve counts: pip install 'prometheus-client==" in done.stderr
