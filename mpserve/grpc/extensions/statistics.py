"""The statistics extension over gRPC (Triton, ``extension_statistics.md``)."""

from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.repository.core import ServerCore


class StatisticsCalls:
    """The calls over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.statistics = Statistics(core)

    def answers(self) -> dict[str, Answer]:
        """What answers each method."""
        return {"ModelStatistics": self.model_statistics}

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Of one model, or of all if none is named. Raises MPServeError: as ``Statistics.told``."""
        told = self.statistics.told(request.name, request.version or None)
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(**stats) for stats in told])
