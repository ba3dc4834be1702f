"""The shared memory extension over gRPC: status, register, unregister (Triton, ``extension_shared_memory.md``).

Of CUDA's shared memory there is none; to register it is refused in the servicer's table.
"""

from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.repository.core import ServerCore


class SharedMemoryCalls:
    """The calls over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    def answers(self) -> dict[str, Answer]:
        """What answers each method."""
        return {
            "SystemSharedMemoryStatus": self.status,
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryUnregister": self.cuda_unregister,
        }

    async def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        """Raises MPServeError: as ``Regions.status``."""
        response = pb.SystemSharedMemoryStatusResponse()
        for region in await self.core.offload(self.core.regions.status, request.name):
            told = response.regions[region.name]
            told.name, told.key, told.offset, told.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        """Raises MPServeError: as ``Regions.register``."""
        fields = request.name, request.key, request.offset, request.byte_size
        await self.core.offload(self.core.regions.register, *fields)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Raises NotSupported."""
        regions = self.core.regions
        await self.core.offload(regions.unregister, request.name)
        regions.follow()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        """There is none."""
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        """There is none to forget."""
        return pb.CudaSharedMemoryUnregisterResponse()
