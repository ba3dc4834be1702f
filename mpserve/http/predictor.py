"""A client of a predictor that speaks REST, V1 or V2. It has one pool of connections, on the worker's event loop.

``serving/models/predictor.py`` decides about deadlines and retries.
"""

import re
import ssl
from typing import Any
from urllib.parse import quote

import httpx2
import orjson

from mpserve.errors import Code, ConfigurationError, InferenceError, InvalidInput, PredictorError
from mpserve.http.inference.routes import BINARY_HEADER
from mpserve.http.responses import STATUS
from mpserve.protocol.messages import InferRequest, InferResponse
from mpserve.protocol.v1 import body as v1
from mpserve.protocol.v2 import codec as v2
from mpserve.serving.models.predictor import Headers, PredictorConfig
from mpserve.version import VERSION

CONNECT_TIMEOUT = 5.0  # seconds for a connect, so that an unreachable host does not look like a slow predict

CODES = {
    **{status: code for code, status in reversed(STATUS.items()) if status != 500},
    502: Code.NOT_READY,  # a proxy cannot reach the predictor
}
"""The error code of a predictor's status: the first of STATUS. Another 4xx means INVALID_INPUT, other statuses MODEL_FAILED."""

MAX_REASON = 1000  # maximum characters of the predictor's error message in ours

_NOT_PASSED_ON = re.compile(
    "content-.*|inference-header-.*|connection|date|keep-alive|server|te|trailer|transfer-encoding|upgrade|vary|x-request-id"
)
"""Headers of the connection, of the body and of the server. Models get all other headers."""


class RestPredictor:
    """The client of ``config``. Make it on its event loop.

    Raises ConfigurationError: the host is invalid, or the CA file cannot be read.
    """

    def __init__(self, config: PredictorConfig) -> None:
        self.is_v2 = config.predictor_protocol == "v2"
        try:
            self._client = httpx2.AsyncClient(
                base_url=config.predictor_base_url,
                verify=_trusted(config.predictor_ca_file),
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT),
                limits=httpx2.Limits(),  # any number of connections
                # Within a cluster, compression costs more than it saves.
                headers={"accept-encoding": "identity", "user-agent": f"mpserve/{VERSION}"},
            )
        except httpx2.InvalidURL as error:
            raise ConfigurationError(f"predictor_host: got {config.predictor_host!r}: {error}") from error

    async def predict(self, model: str, payload: Any, headers: Headers) -> tuple[Any, Headers]:
        """Send a request. Return the answer, an ``InferResponse`` (V2) or a JSON value (V1), and its headers.

        Raises:
            PredictorError: no answer, or a status that is not 2xx.
            InferenceError: the payload cannot be sent, or the answer is malformed.
        """
        body, body_headers = self._encoded(payload)
        name = quote(model, safe="")
        path = f"/v2/models/{name}/infer" if self.is_v2 else f"/v1/models/{name}:predict"
        response = await self._ask("POST", path, body, {**headers, **body_headers})
        if not response.is_success:
            status = response.status_code
            code = CODES.get(status, Code.INVALID_INPUT if 400 <= status < 500 else Code.MODEL_FAILED)
            raise PredictorError(code, f"The predictor answered {_error_of(response)}")
        passed_on = {name: value for name, value in response.headers.items() if not _NOT_PASSED_ON.fullmatch(name)}
        return self._decoded(response), passed_on

    async def is_ready(self, model: str) -> bool:
        """Whether the predictor's model is ready. Raises PredictorError: the predictor cannot be reached."""
        name = quote(model, safe="")
        response = await self._ask("GET", f"/v2/models/{name}/ready" if self.is_v2 else f"/v1/models/{name}")
        return response.is_success and (self.is_v2 or _says_ready(response))

    async def close(self) -> None:
        """End the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, body: bytes | None = None, headers: Headers | None = None) -> Any:
        # As bytes, so that a header in Latin-1 is passed on unchanged.
        raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        try:
            return await self._client.request(method, path, content=body, headers=raw)
        except httpx2.TransportError as error:
            raise PredictorError(Code.NOT_READY, "The predictor cannot be reached.", repr(error)) from error

    def _encoded(self, payload: Any) -> tuple[bytes, Headers]:
        """The body and its headers. Bytes keep the content type of the request (in the SDK: JSON)."""
        if not isinstance(payload, InferRequest):
            body, content_type = v1.encode_response(payload)
            raw = isinstance(payload, bytes | bytearray | memoryview) or content_type is None
            return body, {} if raw else {"content-type": str(content_type)}
        try:
            encoded = v2.encode_request(payload)
        except InvalidInput as error:  # the client's request was valid
            raise InferenceError(f"the request to the predictor cannot be written: {error}") from error
        if encoded.json_length is None:
            return encoded.join(), {"content-type": "application/json"}
        length = {BINARY_HEADER: str(encoded.json_length)}
        return encoded.join(), {"content-type": "application/octet-stream", **length}

    def _decoded(self, response: httpx2.Response) -> Any:
        body = response.content
        if self.is_v2:
            return InferResponse.from_bytes(body, int(response.headers.get(BINARY_HEADER, len(body))))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InferenceError(f"The predictor's answer is not JSON: {error}") from error


def _trusted(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigurationError(f"predictor_ca_file: {ca_file} cannot be used: {error}") from error


def _error_of(response: httpx2.Response) -> str:
    """The status and the message: V2's ``error``, FastAPI's ``detail``, or the text."""
    try:
        error = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        error = response.text
    if isinstance(error, dict):
        error = error.get("error", error.get("detail", error))
    message = error if isinstance(error, str) else orjson.dumps(error).decode()
    return f"{response.status_code}: {message[:MAX_REASON] or response.reason_phrase}"


def _says_ready(response: httpx2.Response) -> bool:
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return True
    return not isinstance(document, dict) or str(document.get("ready", True)).lower() == "true"
