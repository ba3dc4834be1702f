"""Liveness, readiness, metadata and metrics: the routes that only read the state of the server."""

from starlette.requests import Request

from mpserve.errors import ModelNotReady
from mpserve.http.responses import RETRY_AFTER_LOADING, Answer, json_answer
from mpserve.serving.extensions.model_gauges import ModelGauges
from mpserve.serving.extensions.names import extensions
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.metrics import metrics, render
from mpserve.version import VERSION


class Health:
    """The routes over one ``ServerCore``. Those of a model may raise ModelNotFound."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self._gauges = ModelGauges(core)

    async def alive(self, request: Request) -> Answer:
        """``GET /``, for kserve's V1 client and the probe of the KServe agent."""
        return json_answer({"status": "alive"})

    async def live(self, request: Request) -> Answer:
        """``GET /v2/health/live``: the event loop runs."""
        return json_answer({"live": True})

    async def ready(self, request: Request) -> Answer:
        """``GET /v2/health/ready``: every model can answer, in any worker or (``ready_when=all``) in all workers."""
        if self.core.is_ready():
            return json_answer({"ready": True})
        retry_after = [(b"retry-after", RETRY_AFTER_LOADING)]
        return json_answer({"ready": False, "error": "Server is not ready."}, 503, retry_after)

    async def server(self, request: Request) -> Answer:
        """``GET /v2``."""
        return json_answer({"name": "mpserve", "version": VERSION, "extensions": extensions(self.core.settings)})

    async def version(self, request: Request) -> Answer:
        """``GET /version``: the version of mpserve, as MLflow's scoring server tells its own."""
        return Answer(200, [(b"content-type", b"text/plain; charset=utf-8")], VERSION.encode())

    async def models(self, request: Request) -> Answer:
        """``GET /v1/models`` and ``GET /v2/models``: the names of all models, loaded or not."""
        return json_answer({"models": self.core.names})

    async def model_status(self, request: Request) -> Answer:
        """``GET /v1/models/{m}`` and ``GET /v2/models/{m}[/versions/{v}]/ready``. Raises ModelNotReady."""
        instance = self.core.find(request.path_params["model"], request.path_params.get("version"))
        if not self.core.is_model_ready(instance):
            raise ModelNotReady(instance.label)
        return json_answer({"name": instance.model.name, "ready": True})

    async def model_metadata(self, request: Request) -> Answer:
        """``GET /v2/models/{m}[/versions/{v}]``."""
        instance = self.core.find(request.path_params["model"], request.path_params.get("version"))
        model, versions = instance.model, self.core.versions(instance.model.name)
        inputs, outputs = await self.core.describe(instance)
        metadata = {"name": model.name, "versions": versions, "platform": model.platform}
        return json_answer({**metadata, "inputs": inputs, "outputs": outputs})

    async def metrics(self, request: Request) -> Answer:
        """``GET /metrics``: the metrics of all workers together."""
        metrics().flush()
        self.core.publish_queues()
        accept = request.headers.get("accept", "")
        body, content_type = await self.core.offload(render, self.core.board, accept, self._gauges)
        return Answer(200, [(b"content-type", content_type.encode())], body)
