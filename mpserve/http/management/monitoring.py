"""The trace and logging extensions over HTTP (Triton, ``extension_trace.md``, ``extension_logging.md``)."""

from starlette.requests import Request

from mpserve.http.requests import read_document
from mpserve.http.responses import Answer, json_answer
from mpserve.serving.extensions.log_settings import LogSettings
from mpserve.serving.extensions.trace_settings import SETTINGS, refuse_changes
from mpserve.serving.repository.core import ServerCore


class MonitoringRoutes:
    """The routes over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.log_settings = LogSettings(core)

    async def logging(self, request: Request) -> Answer:
        """``GET /v2/logging``, and ``POST`` to change the log settings that it names; gives all.

        Raises:
            MPServeError: as ``LogSettings.change``.
        """
        if request.method == "POST":
            await self.log_settings.change(await read_document(self.core, request))
        return json_answer(self.log_settings.told())

    async def tracing(self, request: Request) -> Answer:
        """``GET /v2[/models/{m}]/trace/setting``, and ``POST`` to set what is set already; gives all trace settings.

        Raises:
            MPServeError: as ``refuse_changes``, and as ``ServerCore.find`` if a model is named.
        """
        if request.method == "POST":
            refuse_changes(await read_document(self.core, request))
        if "model" in request.path_params:
            self.core.find(request.path_params["model"])
        return json_answer({name: words if name == "trace_level" else words[0] for name, words in SETTINGS.items()})
