"""Every error that mpserve raises on purpose, each with a code that no protocol owns.

    MPServeError
    ├── InvalidInput: AlreadyExists, PayloadTooLarge, UnsupportedEncoding, UnsupportedMediaType
    ├── ModelNotFound, RegionNotFound, ModelNotReady, ServerNotReady, Overloaded, DeadlineExceeded, NotSupported
    ├── Unauthenticated, AccessDenied, TooManyRequests
    ├── AcceleratorFailed: AcceleratorOutOfMemory
    └── InferenceError, PredictorError, ModelLoadError, ConfigurationError

    AcceleratorInArbiter (a BaseException)

A front end maps ``code`` to its own status; nothing here knows HTTP or gRPC. The names and the base classes (ValueError,
RuntimeError) are the kserve SDK's (kserve/errors.py), so that an existing model raises and catches what it meant.
"""

from collections.abc import Collection
from enum import Enum


class Code(str, Enum):
    """The fault and its kind, from which a front end looks up its status."""

    INVALID_INPUT = "invalid_input"
    ALREADY_EXISTS = "already_exists"
    TOO_LARGE = "too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
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


MAX_NAME = 100  # characters of a name that a message repeats
LISTED = 10  # names of models in a message


def text_of(error: BaseException) -> str:
    """The text of any error. An error of a model may fail even to say its text."""
    try:
        return str(error)
    except Exception:
        return "its text cannot be read"


def first_line(said: BaseException | str) -> str:
    """The first line of a text, or of an error's text; the kind of the error if it has no text."""
    text = said if isinstance(said, str) else text_of(said).strip() or type(said).__name__
    return text.strip().partition("\n")[0].strip()


def shown(name: str) -> str:
    """A name that a client has sent, for a message: its start if it is long."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


class MPServeError(Exception):
    """Base of all errors that are raised on purpose. ``str(error)`` is for the client.

    Attributes:
        retry_after: whole seconds, 1 or more, after which the client may try again; None: nobody knows.
    """

    code: Code = Code.MODEL_FAILED
    retry_after: int | None = None


class InvalidInput(MPServeError, ValueError):
    """The request is wrong; the message says what the server got and expected."""

    code = Code.INVALID_INPUT

    @property
    def reason(self) -> str:
        """The message (SDK)."""
        return str(self)


class AlreadyExists(InvalidInput):
    """The name is registered already."""

    code = Code.ALREADY_EXISTS


class PayloadTooLarge(InvalidInput):
    """The request is larger than a limit of the server, which the message names."""

    code = Code.TOO_LARGE


class UnsupportedEncoding(InvalidInput):
    """The body has an unknown content coding."""

    code = Code.UNSUPPORTED_ENCODING


class UnsupportedMediaType(InvalidInput):
    """The model cannot take a body of this content type."""

    code = Code.UNSUPPORTED_MEDIA_TYPE


def there_are(names: Collection[str]) -> str:
    """The names that a client may have meant: at most ten."""
    listed = [shown(name) for name in list(names)[:LISTED]]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"There are: {', '.join(listed) or 'none'}{more}."


class ModelNotFound(MPServeError):
    """No model of that name is served."""

    code = Code.NOT_FOUND

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(f"Model with name {shown(model_name)} does not exist.{' ' if detail else ''}{detail}")


class RegionNotFound(MPServeError):
    """No shared memory region of that name is registered."""

    code = Code.NOT_FOUND


class ModelNotReady(MPServeError, RuntimeError):
    """The model is known, but not ready at the moment."""

    code = Code.NOT_READY

    def __init__(self, model_name: str, detail: str = "") -> None:
        super().__init__(f"Model with name {shown(model_name)} is not ready.{' ' if detail else ''}{detail}")


class ServerNotReady(MPServeError, RuntimeError):
    """No model can be served yet, or the server is shutting down."""

    code = Code.NOT_READY

    def __init__(self, message: str = "Server is not ready.") -> None:
        super().__init__(message)


class AcceleratorFailed(MPServeError, RuntimeError):
    """The accelerator is lost to this worker. Another worker, or the successor, can answer."""

    code = Code.NOT_READY


class AcceleratorOutOfMemory(AcceleratorFailed):
    """The accelerator has too little memory left for the request at the moment."""


class Overloaded(MPServeError):
    """Too many requests wait for the model; the client may try again later."""

    code = Code.OVERLOADED

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRequests(MPServeError):
    """The caller, or the model, has as many requests as a limit allows. ``reason`` names the limit in metrics."""

    code = Code.TOO_MANY

    def __init__(self, message: str, retry_after: int, reason: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class DeadlineExceeded(MPServeError):
    """The request was not answered in its time."""

    code = Code.TIMED_OUT


class NotSupported(MPServeError):
    """The request is well-formed, but this model or server does not offer it."""

    code = Code.NOT_SUPPORTED


class Unauthenticated(MPServeError):
    """Who sends the request is not known, and the server answers known callers only."""

    code = Code.UNAUTHENTICATED


class AccessDenied(MPServeError):
    """The request is understood, but this client may not make it."""

    code = Code.FORBIDDEN


class InferenceError(MPServeError, RuntimeError):
    """The model failed. Raise it in a model to choose the words that the client reads; arguments are the SDK's."""

    code = Code.MODEL_FAILED

    def __init__(self, reason: str = "", status: str | None = None, debug_details: object = None) -> None:
        super().__init__(reason if status is None else f"[{status}] {reason}")
        self.reason = reason
        self.status = status
        self.debug_details = debug_details


class PredictorError(MPServeError):
    """The predictor of a transformer failed; ``code`` is the predictor's own verdict.

    NOT_READY: the predictor cannot be reached, or is not ready. TIMED_OUT: it took too long. ``reason`` is for the log alone,
    since it may hold addresses.
    """

    def __init__(self, code: Code, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ModelLoadError(MPServeError):
    """A model's ``preload``, ``load`` or ``warmup`` failed; the message names the model and the reason."""


class ConfigurationError(MPServeError, RuntimeError):
    """The server cannot start as configured; the message says how to fix it.

    gunicorn reports a ``RuntimeError`` in words and without a traceback (app/base.py).
    """

    code = Code.CONFIGURATION


class NothingToServe(ConfigurationError):
    """Neither a target nor a model directory was named, to this command."""

    def __init__(self, command: str = "serve") -> None:
        super().__init__(f"nothing to serve: name a target (mpserve {command} model.py:Class) or a --model_dir")


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
