"""Whose fault a failure is, and what is logged of it: the one place that says so, for every scheduler and front end.

How a front end tells the client is its own affair: a table from codes to its statuses.
"""

import logging
from inspect import isawaitable

from mpserve.errors import Code, InferenceError, MPServeError, NotSupported, text_of

logger = logging.getLogger(__name__)

INTERNAL = frozenset({Code.MODEL_FAILED, Code.CONFIGURATION})
"""Codes of failures that somebody has to mend here: they are logged with their traceback."""


def blame(error: Exception, model: str, verb: str) -> MPServeError:
    """What the client is told of ``error``, which a model raised. An MPServeError says it itself."""
    if isinstance(error, MPServeError):
        return error
    fault: MPServeError
    if isinstance(error, NotImplementedError):
        fault = NotSupported(text_of(error) or f"Model {model} does not implement {verb}.")
    else:
        fault = InferenceError(f"{type(error).__name__} : {text_of(error)}")
    fault.__cause__ = error
    return fault


def report(fault: MPServeError) -> None:
    """Log a failure of the model, or of this server, with its traceback; other failures are the client's to read."""
    if chosen_status(fault) is not None:
        return
    # torch raises NotImplementedError for an operation that a device lacks, which someone has to find.
    if fault.code in INTERNAL or (fault.code is Code.NOT_SUPPORTED and fault.__cause__ is not None):
        try:
            logger.error("the model failed: %s", fault, exc_info=fault.__cause__ or fault)
        except Exception:
            logger.error("the model failed, and its traceback cannot be written: %s", text_of(fault))


def chosen_status(fault: MPServeError) -> int | None:
    """The HTTP status that a model has chosen by raising FastAPI's or Starlette's HTTPException; None: it has not."""
    try:
        status = getattr(fault.__cause__, "status_code", None)
        return status if type(status) is int and hasattr(fault.__cause__, "detail") else None
    except Exception:  # attributes of a model's error may be computed, and fail
        return None


def refuse_promise(result: object, verb: str) -> None:
    """Refuse what is not an answer yet, but the promise of one.

    Raises:
        InferenceError: ``result`` is to be awaited.
    """
    if isawaitable(result):
        close = getattr(result, "close", None)
        if close is not None:
            close()  # else Python warns that it was never awaited
        raise InferenceError(
            f"the answer to {verb} is of type {type(result).__name__}, expected a value: is the method decorated by"
            " something that hides its async def?"
        )
