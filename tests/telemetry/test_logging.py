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
import yaml

import mpserve.telemetry.logging as mpserve_logging
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, ModelLoadError
from mpserve.serving.repository.import_target import find
from mpserve.telemetry.logging import JSONFormatter, TextFormatter, configure, model, request_id, set_slot
from tests.cases import each

ROUTED = ("mpserve", "mpserve.access", "gunicorn.error", "gunicorn.access", "uvicorn.error", "uvicorn.access")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
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
    options: dict[str, Any] = {"args": (), "exc_info": None, **more}
    return logging.getLogger("mpserve.serving").makeRecord("mpserve.serving", level, __file__, 1, message, **options)


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


def as_text(entry: logging.LogRecord) -> str:
    return TextFormatter().format(entry)


@pytest.mark.usefixtures("in_a_request")
def test_a_text_line_tells_time_level_process_slot_model_request_and_logger() -> None:
    entry = record("loaded in %d s", args=(4,))
    entry.created, entry.msecs = datetime(2026, 11, 23, 18, 0, 0).timestamp(), 123.9
    where = f"[pid {os.getpid()} slot 3 model digits req 5f3a]"
    assert as_text(entry) == f"2026-11-23 18:00:00.123 INFO  {where} mpserve: loaded in 4 s"


@pytest.mark.usefixtures("in_a_request")
def test_a_terminal_is_spared_what_a_person_knows() -> None:
    entry = record("loaded in %d s", args=(4,))
    entry.created = datetime(2026, 11, 23, 18, 0, 0).timestamp()
    assert TextFormatter(on_terminal=True).format(entry) == "18:00:00 INFO  mpserve 3 5f3a: loaded in 4 s"


def test_a_line_for_a_terminal_is_folded_and_a_line_to_try_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = "expected " + "a word and another, " * 20
    curl = "curl " + "x" * 200
    folded, tried = TextFormatter(on_terminal=True).format(record(f"{words}\n{curl}")).rsplit("\n", 1)
    assert max(map(len, folded.splitlines())) <= 100
    assert " ".join(folded.split()).endswith(" ".join(words.split()))
    assert tried == curl
    entry = record(words)
    entry.name = "the.users.own"
    assert words in TextFormatter(on_terminal=True).format(entry)


def test_outside_of_a_request_and_a_worker_there_is_no_context_in_a_text_and_dashes_in_json() -> None:
    assert f"[pid {os.getpid()}] mpserve: " in as_text(record())
    assert {as_json(record())[name] for name in ("slot", "model", "request_id")} == {"-"}


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


def test_a_line_holds_the_traceback_and_the_stack() -> None:
    stack = "Stack (most recent call last):"
    entry = record(exc_info=failure(), sinfo=stack)
    content = as_json(entry)
    assert content["exception"].startswith("Traceback (most recent call last):\n")
    assert content["exception"].endswith("ValueError: no such digit")
    assert content["stack"] == stack
    assert as_text(entry).split("\n", 1)[1] == f"{content['exception']}\n{stack}"


def test_a_traceback_for_people_begins_with_the_users_code_and_one_for_machines_with_the_servers(
    tmp_path: Path,
) -> None:
    file = tmp_path / "model.py"
    file.write_text("try:\n    {}['first']\nexcept KeyError as error:\n    raise ValueError('second') from error\n")
    with pytest.raises(ModelLoadError) as raised:
        find(str(file))
    entry = record(exc_info=(type(raised.value), raised.value, raised.value.__traceback__))
    first, second, ours = as_text(entry).split("Traceback (most recent call last):\n")[1:]
    for told, line, error in ((first, 2, "KeyError: 'first'"), (second, 4, "ValueError: second")):
        assert told.startswith(f'  File "{file}", line {line}, in <module>\n')
        assert error in told
        assert "mpserve/" not in told
    assert "the import of" in ours
    assert as_json(entry)["exception"].count("import_target.py") >= 2


def test_a_syntax_error_is_told_without_the_servers_code(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("1 +\n")
    with pytest.raises(ModelLoadError) as raised:
        find(str(file))
    cause = raised.value.__cause__
    assert cause is not None
    told = as_text(record(exc_info=(type(cause), cause, cause.__traceback__)))
    assert f'mpserve: message\n  File "{file}", line 1\n' in told


def test_people_do_not_read_that_the_server_listens_before_it_is_so(capsys: pytest.CaptureFixture[str]) -> None:
    for log_format in ("text", "json"):
        configure(Settings(log_format=log_format))
        logging.getLogger("gunicorn.error").info("Listening at: %s (%s)", "http://h", 1)
        assert ("Listening at" in capsys.readouterr().err) == (log_format == "json")


@each("value, expected", [
    (0.25, 0.25), ([1, "two"], [1, "two"]), (np.float32(0.5), 0.5), (float("nan"), None),
    (Path("/mnt/models"), "/mnt/models"), (2**70, 2**70), ("\ud800", "\ud800"), ({1: "one"}, {"1": "one"}),
])  # fmt: skip
def test_a_json_line_holds_what_was_passed_as_extra_besides_its_own_fields(value: object, expected: object) -> None:
    content = as_json(
        record(extra={"detail": value, "level": "x", "time": "x", "pid": "x", "color_message": "\x1b[36m"})
    )
    assert content["detail"] == expected
    assert (content["level"], content["pid"], content["time"][-1]) == ("INFO", os.getpid(), "Z")
    assert "color_message" not in content


@pytest.mark.usefixtures("in_a_request")
def test_extra_names_the_model_and_slot_that_a_line_is_about() -> None:
    entry = record(extra={"model": "other", "slot": 7})
    assert "slot 7 model other req 5f3a]" in as_text(entry)
    assert (as_json(entry)["slot"], as_json(entry)["model"], as_json(entry)["request_id"]) == (7, "other", "5f3a")


@each("name", ROUTED)
def test_every_server_s_logger_writes_once_to_stderr(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger(name)
    logger.addHandler(logging.StreamHandler())
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)
    configure(Settings())
    logger.warning("once")
    shown = "mpserve" if name.startswith("mpserve") else name.removesuffix(".error")
    assert re.fullmatch(rf".* WARNING \[pid .*\] {shown}: once\n", capsys.readouterr().err)


@each("level, of_mpserve, of_uvicorn", [
    ("debug", logging.DEBUG, logging.WARNING), ("info", logging.INFO, logging.WARNING),
    ("warning", logging.WARNING, logging.WARNING), ("critical", logging.CRITICAL, logging.CRITICAL),
])  # fmt: skip
def test_the_level_holds_for_all_and_uvicorn_only_warns(level: str, of_mpserve: int, of_uvicorn: int) -> None:
    existing = logging.getLogger("a.model.of.the.user")
    configure(Settings(log_level=level))
    for name in ("mpserve.http.app", "gunicorn.error", existing.name):
        assert logging.getLogger(name).getEffectiveLevel() == of_mpserve
    assert logging.getLogger("uvicorn.error").getEffectiveLevel() == of_uvicorn
    assert not existing.disabled


def configured_by(file: Path, content: str, **options: Any) -> None:
    file.write_text(content)
    configure(Settings(log_config_file=str(file), **options))


YAML = """
formatters: {short: {format: "%(name)s|%(message)s"}}
handlers: {stderr: {class: logging.StreamHandler, formatter: short}}
loggers: {noisy: {level: ERROR}}
"""


@pytest.mark.parametrize(("name", "text"), [
    ("logging.yaml", YAML), ("logging.yml", YAML), ("logging.json", json.dumps(yaml.safe_load(YAML))),
])  # fmt: skip
def test_a_file_is_laid_over_what_the_settings_say(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configured_by(tmp_path / name, text, log_level="debug")
    logging.getLogger("mpserve.serving").debug("hello")
    logging.getLogger("noisy").warning("quiet, please")
    assert capsys.readouterr().err == "mpserve.serving|hello\n"


def test_a_file_can_change_the_root_s_level_alone_and_use_our_formatters(tmp_path: Path) -> None:
    formatter = "{(): mpserve.telemetry.logging.JSONFormatter}"
    configured_by(tmp_path / "logging.yaml", f"root: {{level: ERROR}}\nformatters: {{mine: {formatter}}}\n")
    assert logging.getLogger().level == logging.ERROR
    assert [type(handler.formatter) for handler in logging.getLogger().handlers] == [TextFormatter]


def test_a_file_that_gives_a_server_s_logger_a_level_does_not_silence_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("gunicorn.error")
    logger.propagate = False
    configured_by(tmp_path / "logging.yaml", "loggers: {gunicorn.error: {level: WARNING}}\n")
    logger.info("not this")
    logger.warning("this")
    assert re.fullmatch(r".* gunicorn: this\n", capsys.readouterr().err)


@each("name, content, reason", [
    ("missing.yaml", None, "cannot be read: .*No such file"), ("binary.json", b"\xff\xfe", "cannot be read: .*utf-8"),
    ("broken.yaml", b"a: [", "cannot be read: "), ("broken.json", b"{", "cannot be read: "),
    ("list.yaml", b"- 1", "holds a list, expected a mapping"), ("empty.yaml", b"", "holds a NoneType, expected a mapping"),
    ("logging.ini", b"[loggers]", r"expected a \.yaml, \.yml or \.json file"),
    ("handler.yaml", b"handlers: {x: {class: no.such.Handler}}", "is not valid: .*'x'.*no"),
    ("version.yaml", b"version: 7", "is not valid: .*Unsupported version: 7"),
    ("level.yaml", b"root: {level: LOUD}", "is not valid: .*root.*LOUD"),
    ("loggers.yaml", b"loggers: 3", "is not valid: .*int"),
])  # fmt: skip
def test_a_file_that_describes_no_logging_is_named_with_the_reason(
    name: str, content: bytes | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"^log_config_file: .*{name},? {reason}"):
        configure(Settings(log_config_file=str(tmp_path / name)))
