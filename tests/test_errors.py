"""The exception tree, and that every front end's table knows all of it."""

import inspect

from mpserve import errors
from mpserve.errors import Code, MPServeError
from mpserve.http.responses import STATUS
from tests.cases import each

CLASSES = [
    value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, MPServeError)
]  # fmt: skip

CLIENTS = {
    "AlreadyExists",
    "InvalidInput",
    "PayloadTooLarge",
    "UnsupportedEncoding",
    "UnsupportedMediaType",
    "ModelNotFound",
    "RegionNotFound",
    "AccessDenied",
    "TooManyRequests",
    "Unauthenticated",
}


@each("error", CLASSES)
def test_every_error_has_a_status_that_blames_the_right_side(error: type[MPServeError]) -> None:
    assert STATUS[error.code] // 100 == (4 if error.__name__ in CLIENTS else 5)


def test_every_code_has_a_status_and_no_two_kinds_of_fault_share_one() -> None:
    assert set(STATUS) == set(Code)
    assert {code for code in Code if STATUS[code] == 500} == {Code.MODEL_FAILED, Code.CONFIGURATION}


def test_the_clients_fault_and_the_models_fault_are_never_one_class() -> None:
    clients = [error for error in CLASSES if error.__name__ in CLIENTS]
    others = [error for error in CLASSES if error.__name__ not in CLIENTS]
    assert not any(issubclass(a, b) for a in others for b in clients)
    assert not any(issubclass(a, b) for a in clients for b in others if b is not MPServeError)


@each("error, words", [
    (errors.ModelNotFound("m"), "Model with name m does not exist."),
    (errors.ModelNotFound("m", "(version 7)"), "Model with name m does not exist. (version 7)"),
    (errors.InferenceError("no memory"), "no memory"),
    (errors.InferenceError("no memory", status="RETRY", debug_details={}), "[RETRY] no memory"),
    (errors.ServerNotReady(), "Server is not ready."),
    (errors.ModelNotReady("m"), "Model with name m is not ready."),
    (errors.ModelNotReady("m", "It is being loaded."), "Model with name m is not ready. It is being loaded."),
])  # fmt: skip
def test_the_words_are_the_sdks(error: MPServeError, words: str) -> None:
    assert str(error) == words


@each("error, base", [
    (errors.InvalidInput, ValueError), (errors.InferenceError, RuntimeError), (errors.ModelNotReady, RuntimeError),
    (errors.ServerNotReady, RuntimeError), (errors.PayloadTooLarge, errors.InvalidInput),
    (errors.ConfigurationError, RuntimeError),
])  # fmt: skip
def test_what_caught_the_sdks_errors_catches_these(error: type[MPServeError], base: type[Exception]) -> None:
    assert issubclass(error, base)


def test_the_reason_of_an_error_can_be_read_as_the_sdks() -> None:
    assert errors.InvalidInput("no image").reason == "no image"
    failed = errors.InferenceError("lost", "RETRY")
    assert (failed.reason, failed.status) == ("lost", "RETRY")
