"""Every error mpserve raises on purpose, each with a wire-neutral code.

    MPServeError
    ├── InvalidInput          the client's fault: the request cannot be understood
    │   ├── AlreadyExists     the client's fault: what it makes known under a name is known under it already
    │   ├── PayloadTooLarge   the client's fault: more bytes than the server takes
    │   └── UnsupportedEncoding  the client's fault: a content coding that is not understood
    ├── ModelNotFound         no model (or no such version) of that name
    ├── RegionNotFound        no shared memory region of that name
    ├── ModelNotReady         the model is known and not loaded
    ├── ServerNotReady        the server as a whole cannot answer yet, or no longer
    ├── Overloaded            refused before any work was done for it: too many others wait
    ├── DeadlineExceeded      not answered in the time that the request had
    ├── NotSupported          understood, and not offered by this model or server
    ├── InferenceError        the model's fault: it raised, or its answer cannot be encoded
    ├── PredictorError        a transformer's predictor refused, failed, was not there or took too long; its code says which
    ├── ModelLoadError        a model could not be loaded
    └── ConfigurationError    the operator's fault: the server cannot start like this

    AcceleratorInArbiter       (a BaseException) code reached for CUDA in the arbiter process

A front end maps ``code`` to its own status by one table; nothing here knows HTTP or gRPC. The names are the kserve
SDK's where it has one (kserve/errors.py), so that ``raise InvalidInput(...)`` in an existing model means what it meant,
and those are ValueError or RuntimeError where the SDK's are, so that its ``except ValueError`` catches what it caught.
"""

from enum import Enum


class Code(str, Enum):
    """Whose fault, and of what kind: what a front end's status table is keyed by."""

    INVALID_INPUT = "invalid_input"
    ALREADY_EXISTS = "already_exists"
    TOO_LARGE = "too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    TOO_MANY = "too_many"
    NOT_FOUND = "not_found"
    NOT_READY = "not_ready"
    OVERLOADED = "overloaded"
    NOT_SUPPORTED = "not_supported"
    TIMED_OUT = "timed_out"
    MODEL_FAILED = "model_failed"
    CONFIGURATION = "configuration"


def text_of(error: BaseException) -> str:
    """The text of any error. An error of a model may fail even to say its text."""
    try:
        return str(error)
    except Exception:
        return "its text cannot be read"


class MPServeError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` is what the caller may read."""

    code: Code = Code.MODEL_FAILED


class InvalidInput(MPServeError, ValueError):
    """The request is wrong; the message says what was got and what was expected."""

    code = Code.INVALID_INPUT

    @property
    def reason(self) -> str:
        """The message (SDK)."""
        return str(self)


class AlreadyExists(InvalidInput):
    """What is to be made known under a name is known under it already."""

    code = Code.ALREADY_EXISTS


class PayloadTooLarge(InvalidInput):
    """The request is larger than ``max_body_size``."""

    code = Code.TOO_LARGE


class UnsupportedEncoding(InvalidInput):
    """The body has a content coding that is not understood here."""

    code = Code.UNSUPPORTED_ENCODING


class ModelNotFound(MPServeError):
    """No model of that name is served."""

    code = Code.NOT_FOUND

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(f"Model with name {model_name} does not exist.{' ' if detail else ''}{detail}")


class RegionNotFound(MPServeError):
    """No shared memory region of that name is registered."""

    code = Code.NOT_FOUND


class ModelNotReady(MPServeError, RuntimeError):
    """The model is served, and not loaded at the moment."""

    code = Code.NOT_READY

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(f"Model with name {model_name} is not ready.{' ' if detail else ''}{detail}")


class ServerNotReady(MPServeError, RuntimeError):
    """No model can be served yet, or the server is shutting down."""

    code = Code.NOT_READY

    def __init__(self, message: str = "Server is not ready.") -> None:
        super().__init__(message)


class Overloaded(MPServeError):
    """More requests wait for the model than may, or than can be answered in time; asking again makes sense."""

    code = Code.OVERLOADED

    def __init__(self, message: str, retry_after: int) -> None:
        """``retry_after``: whole seconds, 1 or more."""
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(MPServeError):
    """The time that the request had is over."""

    code = Code.TIMED_OUT


class NotSupported(MPServeError):
    """The request is well-formed and asks for what this model or server does not offer."""

    code = Code.NOT_SUPPORTED


class InferenceError(MPServeError, RuntimeError):
    """The model failed. Raise it in a model to choose the words that the client reads; arguments are the SDK's."""

    code = Code.MODEL_FAILED

    def __init__(self, reason: str = "", status: str | None = None, debug_details: object = None) -> None:
        super().__init__(reason if status is None else f"[{status}] {reason}")
        self.reason = reason
        self.status = status
        self.debug_details = debug_details


class PredictorError(MPServeError):
    """What became of a transformer's request to its predictor; ``code`` is what the predictor's own client would have got.

    NOT_READY: it cannot be reached, or says that it cannot answer yet. TIMED_OUT: it took too long. ``reason`` is for the
    log alone: it may hold addresses.
    """

    def __init__(self, code: Code, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ModelLoadError(MPServeError):
    """A model's ``preload``, ``load`` or ``warmup`` failed; the message names the model and the reason."""


class ConfigurationError(MPServeError, RuntimeError):
    """The server cannot start as configured; the message says how to mend it.

    It is a ``RuntimeError`` too, since that is what gunicorn reports in words and without a traceback (app/base.py).
    """

    code = Code.CONFIGURATION


class AcceleratorInArbiter(BaseException):
    """Code reached for CUDA in the arbiter process, which must never initialise it.

    Not an ``Exception``: a model's ``try: x.to("cuda") except Exception: ...`` would swallow it and quietly
    serve from the CPU.
    """

    def __init__(self, where: str) -> None:
        super().__init__(
            f"CUDA was reached before a worker was there, and stopped: {where}. An object that is built already cannot "
            "be built again in the workers: move this line to the model's load(), which runs in every worker, or hand "
            "over the class instead of the object (mpserve serve model.py:Class, start([Class]), asgi_app([Class]))."
        )
        self.where = where
