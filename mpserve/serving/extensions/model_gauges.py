"""The metrics of each model that are true of the living workers, read when metrics are asked for. Knows no front end."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import State
from mpserve.telemetry.metrics import MODEL


class ModelGauges(Collector):
    """Requests in flight and waiting, and the workers that can answer, for each model."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self._statistics = Statistics(core)

    def collect(self) -> Iterator[Metric]:
        board, desired = self.core.board, self.core.desired
        in_flight = GaugeMetricFamily(
            "mpserve_model_requests_in_flight", "Inference requests being answered, by model.", labels=MODEL
        )
        waiting = GaugeMetricFamily(
            "mpserve_model_requests_waiting", "Inference requests in the queue of a model.", labels=MODEL
        )
        for name, group in list(self.core.models.items()):
            if name in desired.models:
                for instance in group:
                    labels = name, instance.model.version
                    for family, number in zip((in_flight, waiting), self._statistics.present(instance), strict=True):
                        family.add_metric(labels, number)
        ready = GaugeMetricFamily(
            "mpserve_model_ready_workers", "Ready workers in which the model can answer.", labels=["model_name"]
        )
        rows = [row for row in board.live() if row.state == State.READY]
        for name, spec in desired.models.items():
            ready.add_metric([name], sum(row.models >> spec.bit & 1 for row in rows))
        yield from (in_flight, waiting, ready)
