"""Decides whose fault a failure is, and logs it: for every scheduler and front end.

A front end translates the code of the error into its own status.
"""

import logging
import time
from inspect import isawaitable
from typing import Any

from mpserve.errors import AcceleratorFailed, Code, InferenceError, InvalidInput, MPServeError, NotSupported, text_of
from mpserve.serving.models.accelerator import accelerator_fault
from mpserve.serving.models.refusals import refusal

logger = logging.getLogger(__name__)
INTERNAL = frozenset({Code.MODEL_FAILED, Code.CONFIGURATION})
"""Codes of failures that somebody has to fix here: they are logged with their traceback."""


QUIET = 10.0
"""Seconds after a refusal by a library in which others are told at debug only: clients can send as many as they like."""

_told: list[float] = []
"""When a refusal was last told; empty: never."""


class RefusedByLibrary(InvalidInput):
    """The model's library has refused the client's input."""


def blame(error: Exception, model: str, verb: str, given: Any = None) -> MPServeError:
    """The error for the client after a model that was handed ``given`` raised ``error``.
    An MPServeError stays as it is, unless the accelerator is lost.
    """
    fault: MPServeError | None = accelerator_fault(error, model)
    if fault is not None:
        return fault
    if isinstance(error, MPServeError):
        return error
    if isinstance(error, NotImplementedError):
        fault = NotSupported(text_of(error) or f"Model {model} does not implement {verb}.")
    else:
        words = refusal(error, given)
        fault = RefusedByLibrary(words) if words else InferenceError(f"{type(error).__name__} : {text_of(error)}")
    fault.__cause__ = error
    return fault


def report(fault: MPServeError) -> None:
    """Log a failure of the model or of this server, with its traceback. Failures of the client are not logged, but those that a
    library found: the model might be at fault after all.
    """
    if chosen_status(fault) is not None:
        return
    if isinstance(fault, RefusedByLibrary):
        _tell_refusal(fault)
        return
    # torch raises NotImplementedError for an operation that a device lacks: somebody has to find that.
    is_ours = fault.code in INTERNAL or isinstance(fault, AcceleratorFailed)
    if is_ours or (fault.code is Code.NOT_SUPPORTED and fault.__cause__ is not None):
        try:
            logger.error("the model failed: %s", fault, exc_info=fault.__cause__ or fault)
        except Exception:
            logger.error("the model failed, and its traceback cannot be written: %s", text_of(fault))


def _tell_refusal(fault: RefusedByLibrary) -> None:
    now = time.monotonic()
    is_due = not _told or now - _told[0] >= QUIET
    if is_due:
        _told[:] = [now]
    logger.log(
        logging.WARNING if is_due else logging.DEBUG,
        "the model's library refused the input (others within %g s are told at debug): %s", QUIET, fault,
        exc_info=fault.__cause__,
    )  # fmt: skip


def chosen_status(fault: MPServeError) -> int | None:
    """The HTTP status of FastAPI's or Starlette's HTTPException, if the model raised it; else None."""
    try:
        status = getattr(fault.__cause__, "status_code", None)
        return status if type(status) is int and hasattr(fault.__cause__, "detail") else None
    except Exception:  # attributes of a model's error may be computed, and fail
        return None


def status_of(fault: MPServeError) -> str:
    """The status of a failed request in the metrics. A status of the client's fault that the model has chosen counts as such."""
    chosen = chosen_status(fault)
    return (Code.INVALID_INPUT if chosen is not None and 400 <= chosen < 500 else fault.code).value


def refuse_promise(result: object, verb: str) -> None:
    """Refuse an answer that must be awaited. Raises InferenceError."""
    if isawaitable(result):
        close = getattr(result, "close", None)
        if close is not None:
            close()  # else Python warns that it was never awaited
        raise InferenceError(
            f"the answer to {verb} is of type {type(result).__name__}, expected a value: is the method decorated by"
            " something that hides its async def?"
        )
