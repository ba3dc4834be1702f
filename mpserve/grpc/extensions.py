"""Triton's extensions over gRPC: model repository, statistics, configuration, tracing, logging and shared memory.

KServe's clients send the model's name in field 1, which is Triton's ``repository_name``. A server has one repository, so field 1
names the model if ``model_name`` does not. The answers have KServe's fields; Triton's messages are empty.

Source: Triton, ``extension_*.md`` and grpc_service.proto.
"""

from typing import Any, NoReturn

from mpserve.errors import InvalidInput, NotSupported
from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.configuration import configuration
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.extensions.trace_settings import ALL_MODELS, TraceSettings
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.repository import Repository
from mpserve.serving.shared_memory.regions import CUDA_REFUSED

FIELDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


class ExtensionCalls:
    """The methods of the extensions. All may raise MPServeError."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.repository = Repository(core)
        self.statistics = Statistics(core)
        self.log_settings = LogSettings(core)
        self.trace_settings = TraceSettings(core)

    def answers(self) -> dict[str, Answer]:
        """By the name of the method: the function that answers."""
        return {
            "RepositoryIndex": self.index,
            "ModelStatistics": self.model_statistics,
            "ModelConfig": self.model_config,
        }

    def managing(self) -> dict[str, Answer]:
        """As ``answers``: the methods that manage the server. The caller keeps them for those who may."""
        return {
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
            "TraceSetting": self.trace_setting,
            "LogSettings": self.log_setting,
            "SystemSharedMemoryStatus": self.status,
            "SystemSharedMemoryRegister": self.register,
            "SystemSharedMemoryUnregister": self.unregister,
            "CudaSharedMemoryStatus": self.cuda_status,
            "CudaSharedMemoryRegister": self.cuda_register,
            "CudaSharedMemoryUnregister": self.cuda_unregister,
        }

    async def index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        entries = await self.repository.index(request.ready)
        models = [pb.RepositoryIndexResponse.ModelIndex(**entry._asdict()) for entry in entries]
        return pb.RepositoryIndexResponse(models=models)

    async def load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        name = _model_name(request)
        await self.repository.load(name, request.parameters)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True)

    async def unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        name = _model_name(request)
        await self.repository.unload(name)
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """The statistics of one model, or of all if the request has no name."""
        statistics = self.statistics.told(request.name, request.version or None)
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(**each) for each in statistics])

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        document = await configuration(self.core, request.name, request.version or None)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**document))

    async def trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """Change the settings of the request, if there are any. Return all."""
        model = request.model_name
        if model != ALL_MODELS:
            self.core.find(model)
        changes = {name: list(setting.value) for name, setting in request.settings.items()}
        await self.trace_settings.change(changes, model)
        response = pb.TraceSettingResponse()
        for name, values in self.trace_settings.told(model).items():
            response.settings[name].value.extend(values)
        return response

    async def log_setting(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Change the settings of the request, if there are any. Return all."""
        await self.log_settings.change({name: _setting_value(value) for name, value in request.settings.items()})
        response = pb.LogSettingsResponse()
        for name, value in self.log_settings.told().items():
            setattr(response.settings[name], FIELDS[type(value)], value)
        return response

    async def status(self, request: pb.SystemSharedMemoryStatusRequest) -> pb.SystemSharedMemoryStatusResponse:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in await self.core.offload(self.core.regions.status, request.name):
            status = response.regions[region.name]
            status.name, status.key = region.name, region.key
            status.offset, status.byte_size = region.offset, region.byte_size
        return response

    async def register(self, request: pb.SystemSharedMemoryRegisterRequest) -> pb.SystemSharedMemoryRegisterResponse:
        fields = request.name, request.key, request.offset, request.byte_size
        await self.core.offload(self.core.regions.register, *fields)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        regions = self.core.regions
        await self.core.offload(regions.unregister, request.name)
        regions.follow()
        return pb.SystemSharedMemoryUnregisterResponse()

    async def cuda_status(self, request: pb.CudaSharedMemoryStatusRequest) -> pb.CudaSharedMemoryStatusResponse:
        return pb.CudaSharedMemoryStatusResponse()

    async def cuda_register(self, request: pb.CudaSharedMemoryRegisterRequest) -> NoReturn:
        raise NotSupported(CUDA_REFUSED)

    async def cuda_unregister(
        self, request: pb.CudaSharedMemoryUnregisterRequest
    ) -> pb.CudaSharedMemoryUnregisterResponse:
        return pb.CudaSharedMemoryUnregisterResponse()


def _model_name(request: Any) -> str:
    name: str = request.model_name or request.repository_name
    if not name:
        raise InvalidInput("expected the name of a model as model_name, got none")
    return name


def _setting_value(value: pb.LogSettingsRequest.SettingValue) -> Any:
    """The value of a setting. None if the client sent the name alone."""
    field = value.WhichOneof("parameter_choice")
    return None if field is None else getattr(value, field)
