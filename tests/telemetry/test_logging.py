import io
import json
import logging
import logging.config
import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpserve.telemetry.logging as mpserve_logging
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.telemetry.logging import JSONFormatter, TextFormatter, configure, dict_config, model, request_id, set_slot
from tests.cases import each

ROUTED = ("mpserve", "mpserve.access", "gunicorn.error", "gunicorn.access", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Puts the root's and the routed loggers' configuration back, so that no test leaks into another."""
    loggers = [logging.getLogger(), *map(logging.getLogger, ROUTED)]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture
def in_a_request(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker of slot 3, in the midst of a request."""
    monkeypatch.setattr(mpserve_logging, "_process", {"slot": "-"})
    set_slot(3)
    model_token, request_token = model.set("digits"), request_id.set("5f3a")
    yield
    model.reset(model_token)
    request_id.reset(request_token)


def record(message: str = "message", level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    extra = more.pop("extra", None)
    logger = logging.getLogger("mpserve.serving")
    return logger.makeRecord(
        logger.name, level, __file__, 1, message, more.pop("args", ()), more.pop("exc_info", None), extra=extra, **more
    )


def failure() -> Any:
    try:
        raise ValueError("no such digit")
    except ValueError:
        return sys.exc_info()


def as_json(entry: logging.LogRecord) -> dict[str, Any]:
    line = JSONFormatter().format(entry)
    assert "\n" not in line
    content: dict[str, Any] = json.loads(line)
    return content


@pytest.mark.usefixtures("in_a_request")
def test_a_text_line_tells_time_level_process_slot_model_request_and_logger() -> None:
    entry = record("loaded in %d s", args=(4,))
    entry.created = datetime(2026, 11, 23, 18, 0, 0).timestamp()
    entry.msecs = 123.9
    expected = (
        f"2026-11-23 18:00:00.123 INFO  [pid {os.getpid()} slot 3 model digits req 5f3a] mpserve.serving: loaded in 4 s"
    )
    assert TextFormatter().format(entry) == expected


def test_outside_of_a_request_and_a_worker_the_context_is_dashes() -> None:
    assert "slot - model - req -]" in TextFormatter().format(record())
    assert {as_json(record())[name] for name in ("slot", "model", "request_id")} == {"-"}


def test_a_text_line_is_followed_by_the_traceback_and_the_stack() -> None:
    text = TextFormatter().format(record(exc_info=failure(), sinfo="Stack (most recent call last):"))
    assert text.splitlines()[1] == "Traceback (most recent call last):"
    assert "ValueError: no such digit" in text
    assert text.endswith("Stack (most recent call last):")


@pytest.mark.usefixtures("in_a_request")
def test_a_json_line_holds_one_object_with_the_same() -> None:
    entry = record("Grüße,\n%s", logging.WARNING, args=("zwei Zeilen",))
    entry.created = datetime(2026, 11, 23, 17, 0, 0, 123456, tzinfo=timezone.utc).timestamp()
    assert as_json(entry) == {
        "time": "2026-11-23T17:00:00.123Z",
        "level": "WARNING",
        "logger": "mpserve.serving",
        "message": "Grüße,\nzwei Zeilen",
        "pid": os.getpid(),
        "slot": 3,
        "model": "digits",
        "request_id": "5f3a",
    }


def test_a_json_line_holds_the_traceback_and_the_stack_as_text() -> None:
    content = as_json(record(exc_info=failure(), sinfo="Stack (most recent call last):"))
    assert content["exception"].startswith("Traceback (most recent call last):\n")
    assert content["exception"].endswith("ValueError: no such digit")
    assert content["stack"] == "Stack (most recent call last):"


@each("value, expected", [
    (0.25, 0.25), ([1, "two"], [1, "two"]), (np.float32(0.5), 0.5), (float("nan"), None),
    (Path("/mnt/models"), "/mnt/models"), (2**70, 2**70), ("\ud800", "\ud800"), ({1: "one"}, {"1": "one"}),
])  # fmt: skip
def test_a_json_line_holds_what_was_passed_as_extra(value: object, expected: object) -> None:
    assert as_json(record(extra={"detail": value}))["detail"] == expected


def test_extra_cannot_take_the_place_of_the_line_s_own_fields() -> None:
    content = as_json(record(extra={"level": "x", "time": "x", "pid": "x", "color_message": "\x1b[36m"}))
    assert content["level"] == "INFO"
    assert content["pid"] == os.getpid()
    assert content["time"].endswith("Z")
    assert "color_message" not in content


@pytest.mark.usefixtures("in_a_request")
def test_extra_names_the_model_and_slot_that_a_line_is_about() -> None:
    entry = record(extra={"model": "other", "slot": 7})
    assert "slot 7 model other req 5f3a]" in TextFormatter().format(entry)
    assert (as_json(entry)["slot"], as_json(entry)["model"], as_json(entry)["request_id"]) == (7, "other", "5f3a")


@pytest.mark.usefixtures("restored_logging")
@each("name", ROUTED)
def test_every_server_s_logger_writes_once_to_stderr(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    logger = logging.getLogger(name)
    logger.addHandler(logging.StreamHandler(stderr))
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    configure(Settings())
    logger.warning("once")
    assert re.fullmatch(rf".* WARNING \[pid .*\] {name}: once\n", stderr.getvalue())


@pytest.mark.usefixtures("restored_logging")
@each("level, of_mpserve, of_uvicorn", [
    ("debug", logging.DEBUG, logging.WARNING), ("info", logging.INFO, logging.WARNING),
    ("warning", logging.WARNING, logging.WARNING), ("critical", logging.CRITICAL, logging.CRITICAL),
])  # fmt: skip
def test_the_level_holds_for_all_and_uvicorn_only_warns(level: str, of_mpserve: int, of_uvicorn: int) -> None:
    configure(Settings(log_level=level))
    assert logging.getLogger("mpserve.http.app").getEffectiveLevel() == of_mpserve
    assert logging.getLogger("gunicorn.error").getEffectiveLevel() == of_mpserve
    assert logging.getLogger("a.model.of.the.user").getEffectiveLevel() == of_mpserve
    assert logging.getLogger("uvicorn.error").getEffectiveLevel() == of_uvicorn


@pytest.mark.usefixtures("restored_logging")
def test_loggers_that_exist_already_go_on() -> None:
    logger = logging.getLogger("made.before.the.configuration")
    configure(Settings())
    assert not logger.disabled


YAML = """
formatters: {short: {format: "%(name)s|%(message)s"}}
handlers: {stderr: {class: logging.StreamHandler, formatter: short}}
loggers: {noisy: {level: ERROR}}
"""


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("name", "text"), [
    ("logging.yaml", YAML), ("logging.yml", YAML),
    (
        "logging.json",
        json.dumps(
            {
                "version": 1,
                "formatters": {"short": {"format": "%(name)s|%(message)s"}},
                "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "short"}},
                "loggers": {"noisy": {"level": "ERROR"}},
            }
        ),
    ),
])  # fmt: skip
def test_a_file_is_laid_over_what_the_settings_say(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    path = tmp_path / name
    path.write_text(text)
    configure(Settings(log_config_file=str(path), log_level="debug"))
    logging.getLogger("mpserve.serving").debug("hello")
    logging.getLogger("noisy").warning("quiet, please")
    assert stderr.getvalue() == "mpserve.serving|hello\n"


@pytest.mark.usefixtures("restored_logging")
def test_a_file_can_change_the_root_s_level_alone_and_use_our_formatters(tmp_path: Path) -> None:
    path = tmp_path / "logging.yaml"
    path.write_text("root: {level: ERROR}\nformatters: {mine: {(): mpserve.telemetry.logging.JSONFormatter}}\n")
    configure(Settings(log_config_file=str(path)))
    assert logging.getLogger().level == logging.ERROR
    assert [type(handler.formatter) for handler in logging.getLogger().handlers] == [TextFormatter]


@pytest.mark.usefixtures("restored_logging")
def test_a_file_that_gives_a_server_s_logger_a_level_does_not_silence_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    path = tmp_path / "logging.yaml"
    path.write_text("loggers: {gunicorn.error: {level: WARNING}}\n")
    logger = logging.getLogger("gunicorn.error")
    logger.propagate = False
    configure(Settings(log_config_file=str(path)))
    logger.info("not this")
    logger.warning("this")
    assert re.fullmatch(r".* gunicorn\.error: this\n", stderr.getvalue())


@pytest.mark.parametrize(("name", "text", "reason"), [
    ("missing.yaml", None, "missing.yaml cannot be read: .*No such file"),
    ("broken.yaml", "a: [", "broken.yaml cannot be read: "), ("broken.json", "{", "broken.json cannot be read: "),
    ("binary.json", b"\xff\xfe", "binary.json cannot be read: .*utf-8"),
    ("list.yaml", "- 1", "list.yaml holds a list, expected a mapping"),
    ("empty.yaml", "", "empty.yaml holds a NoneType, expected a mapping"),
    ("logging.ini", "[loggers]", r"logging.ini, expected a \.yaml, \.yml or \.json file"),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    name: str, text: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigurationError, match=f"log_config_file: .*{reason}"):
        dict_config(Settings(log_config_file=str(path)))


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize(("text", "reason"), [
    ("handlers: {x: {class: no.such.Handler}}", "'x'.*no"), ("version: 7", "Unsupported version: 7"),
    ("root: {level: LOUD}", "root.*LOUD"), ("loggers: 3", "int"),
])  # fmt: skip
def test_a_file_that_describes_no_logging_is_named_with_the_reason(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "logging.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=f"logging.yaml is not valid: .*{reason}"):
        configure(Settings(log_config_file=str(path)))
