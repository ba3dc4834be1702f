"""The model configuration extension over gRPC (Triton, ``extension_model_configuration.md``)."""

from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.configuration import configuration
from mpserve.serving.repository.core import ServerCore


class ConfigurationCalls:
    """The calls over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def answers(self) -> dict[str, Answer]:
        """What answers each method."""
        return {"ModelConfig": self.model_config}

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Raises MPServeError: as ``configuration``."""
        document = await configuration(self.core, request.name, request.version or None)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**document))
