"""The one road of a request, whatever the front end: find the model, run its pipeline, check what came back, blame rightly.

A front end decodes bytes into a payload before this and encodes the outcome after it, and does nothing else, so V1, V2 and gRPC
cannot differ in behaviour.
"""

import logging
from typing import Any

from mpserve.errors import InferenceError, InvalidInput, ModelNotReady, MPServeError, NotSupported
from mpserve.logging import model as model_in_log
from mpserve.protocol.messages import InferRequest, InferResponse
from mpserve.serving.core import ServerCore
from mpserve.serving.pipeline import Headers

logger = logging.getLogger(__name__)


class Dataplane:
    """Answers requests with the models of a ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers
    ) -> tuple[Any, Headers]:
        """Run ``verb`` (``predict`` or ``explain``) of a model; gives its answer and the response headers it set.

        Raises:
            ModelNotFound: no such model or version.
            ModelNotReady: the model has taken itself out of service.
            InvalidInput: the model, or its declaration, refuses the request.
            NotSupported: the model does not implement the verb.
            InferenceError: the model failed; its traceback is in the log.
        """
        served = self.core.find(name, version)
        if not served.model.ready:
            raise ModelNotReady(name)
        model_in_log.set(name)
        row = self.core.row
        row.in_flight += 1
        try:
            result, response_headers = await served.pipeline.run(verb, payload, headers)
        except MPServeError as error:
            if isinstance(error, InferenceError):
                logger.exception("model %s failed in %s", name, verb)
            raise
        except NotImplementedError as error:
            raise NotSupported(str(error) or f"Model {name} does not implement {verb}.") from error
        except Exception as error:
            logger.exception("model %s failed in %s", name, verb)
            raise InferenceError(f"{type(error).__name__} : {error}") from error
        finally:
            row.in_flight -= 1
        if isinstance(result, InferResponse) and isinstance(payload, InferRequest):
            _keep_requested(result, payload)
        return result, response_headers


def _keep_requested(response: InferResponse, request: InferRequest) -> None:
    """Leave only the outputs that were asked for, in the order asked for. None asked for means all (V2, inference request)."""
    if not request.request_outputs:
        return
    by_name = {output.name: output for output in response.outputs}
    kept = []
    for wanted in request.request_outputs:
        if wanted.name not in by_name:
            raise InvalidInput(
                f"Unexpected inference output {wanted.name!r} for model {response.model_name!r}; "
                f"it has {', '.join(map(repr, by_name))}"
            )
        kept.append(by_name[wanted.name])
    response.outputs = kept
