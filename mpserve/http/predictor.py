"""A predictor that is asked over REST, V1 or V2: payloads to request bodies, and its answers, or refusals, to what they mean.

One client with its pool of connections, on the event loop of the worker that made it. When to give up and whether to try
again is decided by ``serving/models/predictor.py``.
"""

import re
import ssl
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from mpserve.errors import Code, ConfigurationError, InferenceError, InvalidInput, PredictorError
from mpserve.http.inference.routes import BINARY_HEADER
from mpserve.http.responses import STATUS
from mpserve.protocol.messages import InferRequest, InferResponse
from mpserve.protocol.v1 import body as v1
from mpserve.protocol.v2 import codec as v2
from mpserve.serving.models.predictor import Headers, PredictorConfig
from mpserve.version import VERSION

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection, so that a host that swallows packets is told from one that takes its time to predict."""

MEANING = {
    **{status: code for code, status in reversed(STATUS.items()) if status != 500},
    502: Code.NOT_READY,  # of a proxy that could not reach the predictor
}
"""What a status of the predictor means here: STATUS, read backwards, the first of several. Another 4xx is a wrong request, and
the rest a failure."""

MAX_REASON = 1000
"""Characters of the predictor's own words that are passed on."""

_NOT_PASSED_ON = re.compile(
    "content-.*|inference-header-.*|connection|date|keep-alive|server|te|trailer|transfer-encoding|upgrade|vary|x-request-id"
)
"""Headers of the connection, of the body, and of the server; the rest is for the client of a model that asks for it."""


class RestPredictor:
    """The predictor of ``config``, whose protocol is v1 or v2. Make it on the event loop that uses it.

    Raises:
        ConfigurationError: the host is none, or the file of authorities cannot be read.
    """

    def __init__(self, config: PredictorConfig) -> None:
        self.is_v2 = config.predictor_protocol == "v2"
        try:
            self._client = httpx.AsyncClient(
                base_url=config.predictor_base_url,
                verify=_trusted(config.predictor_ca_file),
                timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
                limits=httpx.Limits(),  # as many connections as there are requests in flight
                # Within a cluster compressing an answer costs more than it saves.
                headers={"accept-encoding": "identity", "user-agent": f"mpserve/{VERSION}"},
            )
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"predictor_host: got {config.predictor_host!r}: {error}") from error

    async def predict(self, model: str, payload: Any, headers: Headers) -> tuple[Any, Headers]:
        """The answer, an ``InferResponse`` of V2 or a JSON value of V1, and the headers that came with it.

        Raises:
            PredictorError: no answer, or none that is 2xx.
            InferenceError: the payload cannot be sent, or the answer is none of the protocol.
        """
        body, described = self._encoded(payload)
        path = (
            f"/v2/models/{quote(model, safe='')}/infer" if self.is_v2 else f"/v1/models/{quote(model, safe='')}:predict"
        )
        response = await self._ask("POST", path, body, {**headers, **described})
        if not response.is_success:
            raise PredictorError(_meaning(response.status_code), f"The predictor answered {_told(response)}")
        given = {name: value for name, value in response.headers.items() if not _NOT_PASSED_ON.fullmatch(name)}
        return self._decoded(response), given

    async def is_ready(self, model: str) -> bool:
        """Whether V1's or V2's readiness of the model is 200, and does not deny it in its body (V1).

        Raises:
            PredictorError: it cannot be reached.
        """
        name = quote(model, safe="")
        response = await self._ask("GET", f"/v2/models/{name}/ready" if self.is_v2 else f"/v1/models/{name}")
        return response.is_success and (self.is_v2 or _says_ready(response))

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None) -> Any:
        # As bytes: a header of Latin-1 came in, and goes on as it came.
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        try:
            return await self._client.request(method, path, content=body, headers=raw)
        except httpx.TransportError as error:
            raise PredictorError(Code.NOT_READY, "The predictor cannot be reached.", repr(error)) from error

    def _encoded(self, payload: Any) -> tuple[bytes, Headers]:
        """The body and the headers that describe it; bytes keep the content type of the request (SDK: as JSON)."""
        if not isinstance(payload, InferRequest):
            body, content_type = v1.encode_response(payload)
            raw = isinstance(payload, bytes | bytearray | memoryview) or content_type is None
            return body, {} if raw else {"content-type": str(content_type)}
        try:
            encoded = v2.encode_request(payload)
        except InvalidInput as error:  # what the client sent has been checked
            raise InferenceError(f"the request to the predictor cannot be written: {error}") from error
        if encoded.json_length is None:
            return encoded.join(), {"content-type": "application/json"}
        length = {BINARY_HEADER: str(encoded.json_length)}
        return encoded.join(), {"content-type": "application/octet-stream", **length}

    def _decoded(self, response: httpx.Response) -> Any:
        body = response.content
        if self.is_v2:
            return InferResponse.from_bytes(body, int(response.headers.get(BINARY_HEADER, len(body))))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InferenceError(f"The predictor's answer is no JSON: {error}") from error


def _trusted(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"predictor_ca_file: {ca_file} cannot be used: {error}") from error


def _meaning(status: int) -> Code:
    return MEANING.get(status, Code.INVALID_INPUT if 400 <= status < 500 else Code.MODEL_FAILED)


def _told(response: httpx.Response) -> str:
    """Its status and its words: V2's ``error``, FastAPI's ``detail``, or the text."""
    try:
        told = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        told = response.text
    if isinstance(told, dict):
        told = told.get("error", told.get("detail", told))
    words = told if isinstance(told, str) else orjson.dumps(told).decode()
    return f"{response.status_code}: {words[:MAX_REASON] or response.reason_phrase}"


def _says_ready(response: httpx.Response) -> bool:
    try:
        told = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return True
    return not isinstance(told, dict) or str(told.get("ready", True)).lower() == "true"
