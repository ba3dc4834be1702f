"""How mpserve logs: each line carries process, slot, model and request, as text for people or as one JSON object.

It must not know what is logged, nor by whom: modules take ``logging.getLogger(__name__)``, whoever starts the server calls
``configure`` once, and whoever handles a request sets ``request_id`` and ``model`` in its context (a thread that runs a
model needs a copy of that context).
"""

import json
import logging
import logging.config
import os
import re
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timezone
from itertools import product, repeat
from pathlib import Path
from typing import Any

import orjson
import yaml

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError

request_id: ContextVar[str] = ContextVar("request_id", default="-")
model: ContextVar[str] = ContextVar("model", default="-")

# Visible ASCII only: an id goes back in a header and into every log line, where it must not pass for another field.
_ACCEPTED_ID = re.compile(r"[!-~]{1,128}")

_process: dict[str, int | str] = {"slot": "-"}

# What every record has; the rest was passed as ``extra``. uvicorn passes its message a second time, with terminal colours.
_NOT_EXTRA = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_CONTEXT = ("slot", "model", "request_id")

_THROUGH_ROOT = (
    "mpserve", "mpserve.access", "gunicorn.error", "gunicorn.access", "uvicorn.error", "uvicorn.access", "httpx",
)  # fmt: skip

# At INFO uvicorn tells what mpserve tells itself ("Started server process"), and httpx each request to a predictor.
_QUIET = ("uvicorn.error", "httpx")


def identity_for(given: str) -> str:
    """The id of a request: the client's, or a new one if that will not do."""
    return given if given and _ACCEPTED_ID.fullmatch(given) else next(Ids.new)


def accepted_id(given: str) -> str:
    """The client's id, if it will do; else nothing."""
    return given if given and _ACCEPTED_ID.fullmatch(given) else ""


def begin_request(given: str) -> str:
    """As ``identity_for``, and from now on every line logged in this context carries it."""
    identity = identity_for(given) if given else next(Ids.new)  # without the call, since most come with none
    request_id.set(identity)
    return identity


_BYTES = [f"{byte:02x}" for byte in range(256)]


class Ids:
    """The ids that this process makes, 10^12, by ``next(Ids.new)``: unique over workers and respawns.

    A uuid4 costs ten times as much.
    """

    new: Iterator[str]

    @classmethod
    def begin(cls) -> None:
        begin = f"{os.getpid():x}-{time.time_ns() >> 20:x}-"
        cls.new = map("".join, product((begin,), *repeat(_BYTES, 5)))


Ids.begin()
os.register_at_fork(after_in_child=Ids.begin)


def set_slot(slot: int) -> None:
    """Say which worker this process is. Until then the slot is ``-``, as it is in the arbiter."""
    _process["slot"] = slot


def _context(record: logging.LogRecord) -> dict[str, Any]:
    """Where the record was made; ``extra`` wins, for a line that one context logs about another."""
    current = {**_process, "model": model.get(), "request_id": request_id.get()}
    return {name: getattr(record, name, current[name]) for name in _CONTEXT}


class TextFormatter(logging.Formatter):
    """``2026-11-23 18:00:00.123 INFO  [pid 12 slot 0 model digits req 5f3a] mpserve.serving: message``, in local time."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        time = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')}.{int(record.msecs):03d}"
        where = "pid {} slot {slot} model {model} req {request_id}".format(record.process, **_context(record))
        return f"{time} {record.levelname:<5} [{where}] {record.name}: {record.message}"


class JSONFormatter(logging.Formatter):
    """One JSON object on each line.

    time (ISO 8601, UTC, milliseconds), level, logger, message, pid, slot (a number, or "-" in the arbiter), model,
    request_id, exception and stack (text) where there are any, and whatever was passed as ``extra``.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        fields: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **_context(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        taken = _NOT_EXTRA | fields.keys()
        return _dump(fields | {name: value for name, value in vars(record).items() if name not in taken})


def _dump(fields: dict[str, Any]) -> str:
    try:
        return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()
    except orjson.JSONEncodeError:  # a lone surrogate or an integer beyond 64 bits, which must not cost the line
        return json.dumps(fields, default=str, skipkeys=True)


def dict_config(settings: Settings) -> dict[str, Any]:
    """A ``logging.config.dictConfig`` dictionary: everything to stderr, in one format, through the root logger.

    What ``log_config_file`` holds is laid over it, entry by entry within ``root``, ``handlers``, ``formatters``, ``loggers``
    and each logger, so a file need only hold what differs. Raises ConfigurationError: the file cannot be read as such.
    """
    level = settings.log_level.upper()
    own_level = dict.fromkeys(_QUIET, "WARNING" if level in ("DEBUG", "INFO") else level)
    config: dict[str, Any] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"text": {"()": TextFormatter}, "json": {"()": JSONFormatter}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": settings.log_format}
        },
        "root": {"level": level, "handlers": ["stderr"]},
        # The levels too, since gunicorn gives its loggers one of their own before it applies this.
        "loggers": {
            name: {"handlers": [], "propagate": True, "level": own_level.get(name, "NOTSET")} for name in _THROUGH_ROOT
        },
    }
    if settings.log_config_file is None:
        return config
    changes = _read(Path(settings.log_config_file))
    result = _laid_over(config, changes)
    if isinstance(changes.get("loggers"), dict):
        # Or a file that gives gunicorn.error a level would silence it: gunicorn itself stops its lines from reaching the root.
        result["loggers"] = _laid_over(config["loggers"], changes["loggers"])
    return result


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, with ``above`` winning; of what is a mapping in both, each entry by itself."""
    both = {
        name for name in below.keys() & above.keys() if isinstance(below[name], dict) and isinstance(above[name], dict)
    }
    return {**below, **above, **{name: {**below[name], **above[name]} for name in both}}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            raise ConfigurationError(f"log_config_file: got {path}, expected a .yaml, .yml or .json file")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"log_config_file: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"log_config_file: {path} holds a {type(content).__name__}, expected a mapping as logging.config.dictConfig takes it"
        )
    return content


def configure(settings: Settings) -> None:
    """Make this process log as ``settings`` say. Raises ConfigurationError: ``log_config_file`` does not describe a logging."""
    try:
        logging.config.dictConfig(dict_config(settings))
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise ConfigurationError(f"log_config_file: {settings.log_config_file} is not valid: {reason}") from error


def set_level(level: int) -> None:
    """Log what is at least this severe from now on. A logger keeps a level of its own that ``log_config_file`` gave it."""
    logging.getLogger().setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
