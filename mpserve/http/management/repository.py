"""The model repository extension over HTTP: index, load, unload (Triton, ``extension_model_repository.md``).

Load and unload answer as the kserve SDK does; tritonclient looks at the status only. What they do, and when they are
done, is the serving floor's.
"""

from typing import Any

from starlette.requests import Request

from mpserve.errors import InvalidInput
from mpserve.http.requests import read_document
from mpserve.http.responses import Answer, json_answer
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.repository import Repository


class RepositoryRoutes:
    """The routes over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.repository = Repository(core)

    async def index(self, request: Request) -> Answer:
        """``POST /v2/repository/index``: every model there is, or with ``{"ready": true}`` those that are ready."""
        ready = (await read_document(self.core, request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidInput(f"expected true or false as 'ready', got {ready!r}")
        return json_answer([entry._asdict() for entry in await self.repository.index(ready)])

    async def load(self, request: Request) -> Answer:
        """``POST /v2/repository/models/{m}/load``.

        Raises:
            MPServeError: as ``Repository.load``.
        """
        name = request.path_params["model"]
        await self.repository.load(name, await self._parameters(request))
        return json_answer({"name": name, "load": True})

    async def unload(self, request: Request) -> Answer:
        """``POST /v2/repository/models/{m}/unload``; no model depends on another, so ``unload_dependents`` adds nothing.

        Raises:
            MPServeError: as ``Repository.unload``.
        """
        name = request.path_params["model"]
        await self._parameters(request)
        await self.repository.unload(name)
        return json_answer({"name": name, "unload": True})

    async def _parameters(self, request: Request) -> dict[str, Any]:
        parameters = (await read_document(self.core, request)).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InvalidInput(f"expected an object as 'parameters', got {type(parameters).__name__}")
        return parameters
