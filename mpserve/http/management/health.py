"""Liveness, readiness and metadata: everything that is asked about the server or a model rather than of it."""

from starlette.requests import Request

from mpserve.errors import ModelNotReady
from mpserve.http.responses import RETRY_AFTER_LOADING, Answer, json_answer
from mpserve.serving.extensions.configuration import configuration
from mpserve.serving.extensions.names import extensions
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.metrics import metrics, render
from mpserve.version import VERSION


class Health:
    """The read-only routes over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.statistics = Statistics(core)

    async def alive(self, request: Request) -> Answer:
        """``GET /``: what kserve's V1 client and the KServe agent's probe read."""
        return json_answer({"status": "alive"})

    async def live(self, request: Request) -> Answer:
        """``GET /v2/health/live``: the event loop turns."""
        return json_answer({"live": True})

    async def ready(self, request: Request) -> Answer:
        """``GET /v2/health/ready``: every wanted model can answer, in one worker or (``ready_when=all``) in each."""
        if self.core.is_ready():
            return json_answer({"ready": True})
        retry_after = [(b"retry-after", RETRY_AFTER_LOADING)]
        return json_answer({"ready": False, "error": "Server is not ready."}, 503, retry_after)

    async def server(self, request: Request) -> Answer:
        """``GET /v2``: server metadata."""
        spoken = extensions(self.core.settings)
        return json_answer({"name": "mpserve", "version": VERSION, "extensions": spoken})

    async def models(self, request: Request) -> Answer:
        """``GET /v1/models`` and ``GET /v2/models``: the names of all models, loaded or not."""
        return json_answer({"models": self.core.names})

    async def model_status(self, request: Request) -> Answer:
        """``GET /v1/models/{m}`` and ``GET /v2/models/{m}[/versions/{v}]/ready``.

        Raises:
            ModelNotFound: no such model, or version of it.
            ModelNotReady: it cannot answer in any worker.
        """
        instance = self.core.find(request.path_params["model"], request.path_params.get("version"))
        if not self.core.is_model_ready(instance):
            raise ModelNotReady(instance.label)
        return json_answer({"name": instance.model.name, "ready": True})

    async def model_metadata(self, request: Request) -> Answer:
        """``GET /v2/models/{m}[/versions/{v}]``.

        Raises:
            ModelNotFound: no such model, or version of it.
        """
        instance = self.core.find(request.path_params["model"], request.path_params.get("version"))
        model, versions = instance.model, self.core.versions(instance.model.name)
        inputs, outputs = await self.core.describe(instance)
        return json_answer(
            {
                "name": model.name,
                "versions": versions,
                "platform": model.platform,
                "inputs": inputs,
                "outputs": outputs,
            }
        )

    async def model_configuration(self, request: Request) -> Answer:
        """``GET /v2/models/{m}[/versions/{v}]/config`` (Triton, ``extension_model_configuration.md``).

        Raises:
            MPServeError: as ``configuration``.
        """
        name, version = request.path_params["model"], request.path_params.get("version")
        return json_answer(await configuration(self.core, name, version))

    async def model_statistics(self, request: Request) -> Answer:
        """``GET /v2/models/stats`` and ``GET /v2/models/{m}[/versions/{v}]/stats`` (Triton, ``extension_statistics.md``).

        Raises:
            MPServeError: as ``Statistics.told``.
        """
        name, version = request.path_params.get("model", ""), request.path_params.get("version")
        return json_answer({"model_stats": self.statistics.told(name, version)})

    async def metrics(self, request: Request) -> Answer:
        """``GET /metrics``: the sum over all workers, whichever is asked."""
        metrics().flush()
        body, content_type = await self.core.offload(render, self.core.board, request.headers.get("accept", ""))
        return Answer(200, [(b"content-type", content_type.encode())], body)
