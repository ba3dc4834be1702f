"""The trace and logging extensions over gRPC (Triton, ``extension_trace.md``, ``extension_logging.md``)."""

from typing import Any

from mpserve.grpc.calls import Answer
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.extensions.trace_settings import SETTINGS, refuse_changes
from mpserve.serving.repository.core import ServerCore

FIELDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


class MonitoringCalls:
    """The calls over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.log_settings = LogSettings(core)

    def answers(self) -> dict[str, Answer]:
        """What answers each method."""
        return {"TraceSetting": self.trace_setting, "LogSettings": self.log_setting}

    async def log_setting(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """Change those that are named, if any; gives all. Raises MPServeError: as ``LogSettings.change``."""
        await self.log_settings.change({name: _value(given) for name, given in request.settings.items()})
        response = pb.LogSettingsResponse()
        for name, value in self.log_settings.told().items():
            setattr(response.settings[name], FIELDS[type(value)], value)
        return response

    async def trace_setting(self, request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
        """All trace settings. Raises MPServeError: as ``refuse_changes``, and as ``ServerCore.find`` if a model is named."""
        refuse_changes({name: list(given.value) for name, given in request.settings.items()})
        if request.model_name:
            self.core.find(request.model_name)
        response = pb.TraceSettingResponse()
        for name, words in SETTINGS.items():
            response.settings[name].value.extend(words)
        return response


def _value(given: pb.LogSettingsRequest.SettingValue) -> Any:
    """A setting's value; None if it is sent without one."""
    field = given.WhichOneof("parameter_choice")
    return None if field is None else getattr(given, field)
