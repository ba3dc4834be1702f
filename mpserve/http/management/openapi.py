"""``GET /openapi.json`` and ``GET /docs``: the OpenAPI document of the server, and a page that shows it.

The document is made for each request from ``operations.py``, ``openapi.json``, and the inputs and outputs of the loaded models.
"""

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.routing import Route

from mpserve.http.authentication import public_paths
from mpserve.http.management.examples import examples_of
from mpserve.http.management.operations import FAULTS, JSON, OPERATIONS, Operation
from mpserve.http.management.pages import page
from mpserve.http.management.schemas import declared, infer_request, infer_response, predict_request
from mpserve.http.responses import Answer, json_answer
from mpserve.http.routing import AdminRoute
from mpserve.http.server.interface import ADMIN
from mpserve.protocol.declaration import nullable
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from mpserve.version import VERSION

logger = logging.getLogger(__name__)

Document = dict[str, Any]

PREDICT, INFER = "/v1/models/{model}:predict", "/v2/models/{model}/infer"

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
"""How a known caller shows who it is."""


class OpenApi:
    """The routes over one ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    async def document(self, request: Request) -> Answer:
        """``GET /openapi.json``: the routes of the server, and the routes of each loaded model with its schemas."""
        hidden = () if ADMIN in request.scope else AdminRoute
        routes = [each for each in request.app.routes if isinstance(each, Route) and not isinstance(each, hidden)]
        document = described(f"{method} {route.path_format}" for route in routes for method in route.methods or ())
        for name, group in list(self.core.models.items()):
            path = quote(name, safe="")
            document["paths"] |= await self._paths_of(group.newest, path, with_v1=True)
            for instance in group if len(group.versions) > 1 else ():
                version = quote(instance.model.version, safe="")
                document["paths"] |= await self._paths_of(instance, f"{path}/versions/{version}", with_v1=False)
        if self.core.authenticator is not None:
            _tell_of_callers(document, public_paths(self.core.settings))
        return json_answer(document)

    async def page(self, request: Request) -> Answer:
        """``GET /docs``: a page of the document, with a form to try each route. The page loads nothing from other servers."""
        return page("docs.html")

    async def _paths_of(self, instance: ModelInstance, model: str, with_v1: bool) -> Document:
        """The routes of one version of a model. ``model`` replaces ``{model}`` in paths.

        A model that does not say what it takes has the schemas of every request.
        """
        try:
            inputs, outputs = map(declared, await self.core.describe(instance))
        except Exception:  # in the model's code, or an invalid declaration
            logger.warning("the inputs of model %s are left out of /openapi.json", instance.model.name, exc_info=True)
            inputs = outputs = []
        inputs = [tensor._replace(nullable=nullable(instance.declared, tensor.name)) for tensor in inputs]
        paths = _model_path(INFER, model, infer_request(inputs), infer_response(outputs))
        rows = isinstance(instance.model, TensorModel) and all(tensor.shape for tensor in inputs)
        if with_v1 and (rows or not inputs):
            paths |= _model_path(PREDICT, model, predict_request(inputs), {})
        examples = examples_of(instance.model)
        for path, item in paths.items():
            if (version := path[1:3]) in examples:
                item["post"]["requestBody"]["content"][JSON]["schema"]["examples"] = [examples[version]]
        return paths


def described(routes: Iterable[str]) -> Document:
    """The document of these routes, each given by its method and path. Unknown routes are left out."""
    document: Document = orjson.loads(_file("openapi.json"))
    document["info"]["version"] = VERSION
    document["components"]["responses"] = {
        str(status): _response(why, {JSON: "Error"}) for status, why in FAULTS.items()
    }
    paths: Document = {}
    for route in routes:
        if route in OPERATIONS:
            method, path = route.split(" ")
            paths.setdefault(path, {})[method.lower()] = _operation(path, OPERATIONS[route])
    return document | {"paths": paths}


def _tell_of_callers(document: Document, public: Collection[str]) -> None:
    """Add to a document that the server answers known callers only."""
    document["components"]["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for path, item in document["paths"].items():
        for operation in item.values():
            if path in public:
                operation["security"] = []
            else:
                operation["responses"]["401"] = _reference("responses", "401")


@cache
def _file(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


def _operation(path: str, row: Operation) -> Document:
    parameters = re.findall(r"{(\w+)}", path)
    operation: Document = {
        "tags": [{"v1": "V1", "v2": "V2"}.get(path.split("/")[1], "Server")],
        "summary": row.summary,
        "parameters": [_reference("parameters", name) for name in (*parameters, *row.request_headers)],
        "responses": {
            "200": _response("Success", row.answers, row.response_headers),
            **{str(status): _reference("responses", str(status)) for status in row.faults},
        },
    }
    if row.takes:
        operation["parameters"].append(_reference("parameters", "Content-Encoding"))
        operation["requestBody"] = {"content": _content(row.takes)}
    return operation


def _model_path(template: str, model: str, request: Document, response: Document) -> Document:
    """The path of a route for one model, with the schemas of its JSON."""
    path = template.replace("{model}", model)
    operation = _operation(path, OPERATIONS[f"POST {template}"])
    operation["tags"] = ["Models"]
    operation["requestBody"]["content"][JSON]["schema"] = request
    operation["responses"]["200"]["content"][JSON]["schema"] = response
    return {path: {"post": operation}}


def _response(description: str, content: Mapping[str, str], headers: Iterable[str] = ()) -> Document:
    return {
        "description": description,
        "headers": {name: _reference("headers", name) for name in ("x-request-id", *headers)},
        "content": _content(content),
    }


def _content(schemas: Mapping[str, str]) -> Document:
    return {media_type: {"schema": _reference("schemas", name)} for media_type, name in schemas.items()}


def _reference(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}
