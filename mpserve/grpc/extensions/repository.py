"""The model repository extension over gRPC: index, load, unload (Triton, ``extension_model_repository.md``).

KServe's clients have the model's name in field 1, which is Triton's ``repository_name``; a server has one repository, so
field 1 names the model where ``model_name`` does not. The answers have KServe's fields; Triton's messages are empty.
"""

from typing import Any

from mpserve.errors import InvalidInput
from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.repository import Repository


class RepositoryCalls:
    """The calls over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.repository = Repository(core)

    def answers(self) -> dict[str, Answer]:
        """What answers each method."""
        return {
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }

    async def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """Every model there is, or those that are ready."""
        entries = await self.repository.index(request.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**entry._asdict()) for entry in entries]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        """Raises MPServeError: as ``Repository.load``."""
        name = _named(request)
        await self.repository.load(name, request.parameters)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        """Raises MPServeError: as ``Repository.unload``."""
        name = _named(request)
        await self.repository.unload(name)
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)


def _named(request: Any) -> str:
    name: str = request.model_name or request.repository_name
    if not name:
        raise InvalidInput("expected the name of a model as model_name, got none")
    return name
