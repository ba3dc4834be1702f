"""Triton's extensions over HTTP: model repository, configuration, statistics, tracing, logging and shared memory.

Load and unload answer as the kserve SDK does; tritonclient reads only their status. Source: Triton, ``extension_*.md``.
"""

from typing import Any

from starlette.requests import Request

from mpserve.errors import InvalidInput, NotSupported
from mpserve.http.requests import read_document
from mpserve.http.responses import Answer, json_answer
from mpserve.serving.extensions.configuration import configuration
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.extensions.trace_settings import ALL_MODELS, TraceSettings
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.repository import Repository
from mpserve.serving.shared_memory.regions import CUDA_REFUSED


class ExtensionRoutes:
    """The routes of the extensions. All may raise MPServeError."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.repository = Repository(core)
        self.statistics = Statistics(core)
        self.log_settings = LogSettings(core)
        self.trace_settings = TraceSettings(core)

    async def index(self, request: Request) -> Answer:
        """``POST /v2/repository/index``: every model, or with ``{"ready": true}`` every model that is ready."""
        ready = (await read_document(self.core, request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidInput(f"expected true or false as 'ready', got {ready!r}")
        return json_answer([entry._asdict() for entry in await self.repository.index(ready)])

    async def load(self, request: Request) -> Answer:
        """``POST /v2/repository/models/{m}/load``."""
        name = request.path_params["model"]
        await self.repository.load(name, await self._parameters(request))
        return json_answer({"name": name, "load": True})

    async def unload(self, request: Request) -> Answer:
        """``POST /v2/repository/models/{m}/unload``. No model depends on another, so ``unload_dependents`` has no effect."""
        name = request.path_params["model"]
        await self._parameters(request)
        await self.repository.unload(name)
        return json_answer({"name": name, "unload": True})

    async def _parameters(self, request: Request) -> dict[str, Any]:
        parameters = (await read_document(self.core, request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidInput(f"expected an object as 'parameters', got {type(parameters).__name__}")
        return parameters

    async def model_configuration(self, request: Request) -> Answer:
        """``GET /v2/models/{m}[/versions/{v}]/config``."""
        name, version = request.path_params["model"], request.path_params.get("version")
        return json_answer(await configuration(self.core, name, version))

    async def model_statistics(self, request: Request) -> Answer:
        """``GET /v2/models/stats`` and ``GET /v2/models/{m}[/versions/{v}]/stats``."""
        name, version = request.path_params.get("model", ""), request.path_params.get("version")
        return json_answer({"model_stats": self.statistics.told(name, version)})

    async def tracing(self, request: Request) -> Answer:
        """``GET`` and ``POST /v2[/models/{m}]/trace/setting``: change the settings of the request, if any. Return all."""
        model = request.path_params.get("model", ALL_MODELS)
        changes = await read_document(self.core, request) if request.method == "POST" else {}
        if model != ALL_MODELS:
            self.core.find(model)
        await self.trace_settings.change(changes, model)
        told = self.trace_settings.told(model)
        return json_answer({name: value if name == "trace_level" else value[0] for name, value in told.items()})

    async def logging(self, request: Request) -> Answer:
        """``GET`` and ``POST /v2/logging``: change the settings of the request, if there are any. Return all."""
        if request.method == "POST":
            await self.log_settings.change(await read_document(self.core, request))
        return json_answer(self.log_settings.told())

    async def status(self, request: Request) -> Answer:
        """``GET /v2/systemsharedmemory[/region/{region}]/status``."""
        regions = await self.core.offload(self.core.regions.status, _region(request))
        fields = ("name", "key", "offset", "byte_size")
        return json_answer([{field: getattr(region, field) for field in fields} for region in regions])

    async def register(self, request: Request) -> Answer:
        """``POST /v2/systemsharedmemory/region/{region}/register``."""
        document = await read_document(self.core, request)
        fields = document.get("key"), document.get("offset", 0), document.get("byte_size")
        await self.core.offload(self.core.regions.register, _region(request), *fields)
        return json_answer({})

    async def unregister(self, request: Request) -> Answer:
        """``POST /v2/systemsharedmemory[/region/{region}]/unregister``."""
        regions = self.core.regions
        await self.core.offload(regions.unregister, _region(request))
        regions.follow()
        return json_answer({})

    async def cuda_status(self, request: Request) -> Answer:
        """``GET /v2/cudasharedmemory[/region/{region}]/status``."""
        return json_answer([])

    async def cuda_register(self, request: Request) -> Answer:
        """``POST /v2/cudasharedmemory/region/{region}/register``."""
        raise NotSupported(CUDA_REFUSED)

    async def cuda_unregister(self, request: Request) -> Answer:
        """``POST /v2/cudasharedmemory[/region/{region}]/unregister``."""
        return json_answer({})


def _region(request: Request) -> str:
    """The region in the path, or an empty string."""
    name: str = request.path_params.get("region", "")
    return name
