"""The shared memory extension over HTTP: status, register, unregister (Triton, ``extension_shared_memory.md``)."""

from starlette.requests import Request

from mpserve.errors import NotSupported
from mpserve.http.requests import read_document
from mpserve.http.responses import Answer, json_answer
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.shared_memory.regions import CUDA_REFUSED


class SharedMemoryRoutes:
    """The routes over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    async def status(self, request: Request) -> Answer:
        """``GET /v2/systemsharedmemory[/region/{region}]/status``.

        Raises:
            MPServeError: as ``Regions.status``.
        """
        regions = await self.core.offload(self.core.regions.status, _name(request))
        fields = ("name", "key", "offset", "byte_size")
        return json_answer([{field: getattr(region, field) for field in fields} for region in regions])

    async def register(self, request: Request) -> Answer:
        """``POST /v2/systemsharedmemory/region/{region}/register``.

        Raises:
            MPServeError: as ``Regions.register``.
        """
        regions = self.core.regions
        given = await read_document(self.core, request)
        fields = given.get("key"), given.get("offset", 0), given.get("byte_size")
        await self.core.offload(regions.register, _name(request), *fields)
        return json_answer({})

    async def unregister(self, request: Request) -> Answer:
        """``POST /v2/systemsharedmemory[/region/{region}]/unregister``. Raises NotSupported."""
        regions = self.core.regions
        await self.core.offload(regions.unregister, _name(request))
        regions.follow()
        return json_answer({})

    async def cuda_status(self, request: Request) -> Answer:
        """``GET /v2/cudasharedmemory[/region/{region}]/status``: there is none."""
        return json_answer([])

    async def cuda_register(self, request: Request) -> Answer:
        """``POST /v2/cudasharedmemory/region/{region}/register``. Raises NotSupported."""
        raise NotSupported(CUDA_REFUSED)

    async def cuda_unregister(self, request: Request) -> Answer:
        """``POST /v2/cudasharedmemory[/region/{region}]/unregister``: there is none to forget."""
        return json_answer({})


def _name(request: Request) -> str:
    """The region that the path names; empty where it names none."""
    name: str = request.path_params.get("region", "")
    return name
