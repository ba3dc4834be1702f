"""The format of log lines: process, slot, model, request and message, as text or as one JSON object.

Modules log by ``logging.getLogger(__name__)``. The starter of a server calls ``configure`` once. A front end sets ``request_id``
and ``model`` in the context of a request; a thread that runs a model needs a copy of that context.
"""

import asyncio
import importlib
import json
import logging
import logging.config
import os
import re
import runpy
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timezone
from itertools import product, repeat
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import yaml

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError

logger = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")
model: ContextVar[str] = ContextVar("model", default="-")
trace_id: ContextVar[str] = ContextVar("trace_id", default="-")  # of the trace of a request, if requests are traced

WIDEST, NARROW = 100, 60  # columns of a line for people, at most, and of one that fits every terminal
MAX_CALLER = 128  # characters of a caller's name in a line

# Visible ASCII only, since an id is written to a header and to log lines.
_ACCEPTED_ID = re.compile(r"[!-~]{1,128}")

_process: dict[str, int | str] = {"slot": "-"}

# Attributes of every record. All others were passed as ``extra``, but for uvicorn's message in terminal colours.
_NOT_EXTRA = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_THROUGH_ROOT = (
    "mpserve", "mpserve.access", "gunicorn.error", "gunicorn.access", "uvicorn.error", "uvicorn.access", "httpx2",
)  # fmt: skip

# At INFO uvicorn repeats mpserve's lines ("Started server process"), and httpx2 logs each request to a predictor.
_QUIET = ("uvicorn.error", "httpx2")


_FAMILIES = ("mpserve", "gunicorn", "uvicorn")
_SHOWN = {"gunicorn.error": "gunicorn", "uvicorn.error": "uvicorn"}
"""Loggers -> their names for people, since these have not errors alone."""
_SENTINELS = (__name__, "gunicorn.error")
"""Loggers of the server. ``dictConfig`` and ``fileConfig`` disable these two if they disable any."""


def accepted_id(client_id: str) -> str:
    """The client's id if it is acceptable, else an empty string."""
    return client_id if client_id and _ACCEPTED_ID.fullmatch(client_id) else ""


def begin_request(client_id: str) -> str:
    """Set the id of the request in this context: the client's id if it is acceptable, or a new id. Return it."""
    identity = accepted_id(client_id) or next(Ids.new)
    request_id.set(identity)
    return identity


def shown_caller(name: str | None) -> str:
    """The name of a caller as a part of a line of the access log, with a space before it. A user's function may give any name."""
    return f" {quote(name, '@/:+~')[:MAX_CALLER]}" if name else ""


_BYTES = [f"{byte:02x}" for byte in range(256)]


class Ids:
    """Makes ids by ``next(Ids.new)``, unique over workers and respawns. A uuid4 would be slower."""

    new: Iterator[str]

    @classmethod
    def begin(cls) -> None:
        begin = f"{os.getpid():x}-{time.time_ns() >> 20:x}-"
        cls.new = map("".join, product((begin,), *repeat(_BYTES, 5)))


Ids.begin()
os.register_at_fork(after_in_child=Ids.begin)


def set_slot(slot: int) -> None:
    """Set the slot of this process. In the arbiter the slot is ``-``."""
    _process["slot"] = slot


def context_of(record: logging.LogRecord) -> dict[str, Any]:
    """Slot, model and request of a record, and its trace if there is one. ``extra`` overrides them, for a line about another
    context.
    """
    current = {**_process, "model": model.get(), "request_id": request_id.get()}
    trace = trace_id.get()
    if trace != "-":
        current["trace_id"] = trace
    return {name: getattr(record, name, value) for name, value in current.items()}


_PACKAGE = str(Path(__file__).parents[1])
_MACHINERY = ("<frozen ", *(str(Path(module.__file__ or "").parent) for module in (importlib, asyncio)), runpy.__file__)
"""Files of the frames that lead from the server to the user's code."""


class TextFormatter(logging.Formatter):
    """For people: ``2026-11-23 18:00:00.123 INFO  [pid 12 slot 0 model digits req 5f3a] mpserve: message``, in local time.

    What is not known is left out. A terminal is spared date, pid and model, and its lines have 100 columns at most. A traceback
    begins with the user's code, if there is any in it.
    """

    def __init__(self, on_terminal: bool | None = None) -> None:
        super().__init__()
        self._on_terminal = sys.stderr.isatty() if on_terminal is None else on_terminal

    def formatMessage(self, record: logging.LogRecord) -> str:
        name = "mpserve" if record.name.startswith("mpserve.") else _SHOWN.get(record.name, record.name)
        if self._on_terminal:
            values = [str(value) for key, value in context_of(record).items() if value != "-" and key != "model"]
            head = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<5} {' '.join([name, *values])}: "
            return folded(head + record.message) if name in _FAMILIES else head + record.message
        time = f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')}.{int(record.msecs):03d}"
        context = {"slot": "slot", "model": "model", "request_id": "req", "trace_id": "trace"}
        known = [f"{context[name]} {value}" for name, value in context_of(record).items() if value != "-"]
        return f"{time} {record.levelname:<5} [{' '.join([f'pid {record.process}', *known])}] {name}: {record.message}"

    def formatException(self, ei: Any) -> str:
        return users_traceback(ei[1])


def folded(text: str) -> str:
    """The text with its first line folded to the width of a terminal. Further lines, such as those to try, remain whole."""
    line, *rest = text.split("\n")
    if len(line) <= NARROW or len(line) <= (width := min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)):
        return text
    lines = textwrap.wrap(line, width, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False)
    return "\n".join([*lines, *rest])


def users_traceback(error: BaseException) -> str:
    """The traceback of an error without the frames that led to the user's code."""
    told = traceback.TracebackException.from_exception(error)
    _begin_with_users_code(told)
    return "".join(told.format()).rstrip("\n")


def _begin_with_users_code(told: traceback.TracebackException | None) -> None:
    if told is None:
        return
    for number, frame in enumerate(told.stack):
        if not frame.filename.startswith((_PACKAGE, *_MACHINERY)):
            del told.stack[:number]
            break
    else:
        if getattr(told, "filename", None):  # of a SyntaxError, which names the user's file itself
            told.stack.clear()
    _begin_with_users_code(told.__cause__)
    _begin_with_users_code(told.__context__)


class BeforeTheDoor(logging.Filter):
    """Drops gunicorn's word that it listens: the port refuses connections until the models are loaded."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name != "gunicorn.error" or not str(record.msg).startswith(("Listening at", "Using worker"))


class JSONFormatter(logging.Formatter):
    """One JSON object on each line.

    Fields: time (ISO 8601, UTC, milliseconds), level, logger, message, pid, slot (a number, or "-" in the arbiter), model,
    request_id, trace_id, exception and stack (text, if there is one), and the fields of ``extra``.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc)
        fields: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **context_of(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        reserved = _NOT_EXTRA | fields.keys()
        fields |= {name: value for name, value in vars(record).items() if name not in reserved}
        options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
        try:
            return orjson.dumps(fields, default=str, option=options).decode()
        except orjson.JSONEncodeError:  # for example a lone surrogate, or an integer beyond 64 bits
            return json.dumps(fields, default=str, skipkeys=True)


def dict_config(settings: Settings) -> dict[str, Any]:
    """A ``logging.config.dictConfig`` dictionary: all lines to stderr, in one format, by the root logger.

    ``log_config_file`` overrides single entries of ``root``, ``handlers``, ``formatters``, ``loggers`` and each logger. Raises
    ConfigurationError: the file cannot be read.
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
        # With levels, since gunicorn sets levels of its loggers before it applies this.
        "loggers": {
            name: {"handlers": [], "propagate": True, "level": own_level.get(name, "NOTSET")} for name in _THROUGH_ROOT
        },
    }
    if settings.log_format == "text":
        config["filters"] = {"before_the_door": {"()": BeforeTheDoor}}
        config["handlers"]["stderr"]["filters"] = ["before_the_door"]
    if settings.log_config_file is None:
        return config
    changes = _read(Path(settings.log_config_file))
    result = _merge(config, changes)
    if isinstance(changes.get("loggers"), dict):
        # Otherwise a file that only sets the level of gunicorn.error would silence it, since gunicorn stops its propagation.
        result["loggers"] = _merge(config["loggers"], changes["loggers"])
    return result


def _merge(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``config`` with ``changes``. If both have a mapping, its entries are merged."""
    both = [name for name, value in changes.items() if isinstance(value, dict) and isinstance(config.get(name), dict)]
    return {**config, **changes, **{name: {**config[name], **changes[name]} for name in both}}


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            raise ConfigurationError(f"log_config_file: got {path}, expected a .yaml, .yml or .json file")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"log_config_file: {path} cannot be read: line {line}: {error.problem}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"log_config_file: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"log_config_file: {path} holds a {type(content).__name__}, expected a mapping as logging.config.dictConfig takes it"
        )
    return content


def configure(settings: Settings) -> None:
    """Configure the logging of this process. Raises ConfigurationError: ``log_config_file`` is not valid."""
    try:
        logging.config.dictConfig(dict_config(settings))
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        reason = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        raise ConfigurationError(f"log_config_file: {settings.log_config_file} is not valid: {reason}") from error


def set_level(level: int) -> None:
    """Set the least severe level that is logged. Loggers keep the levels of ``log_config_file``."""
    _Operator.level = level
    for name in ("", *_Operator.apart):
        logging.getLogger(name).setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


class _Operator:
    """The configuration that the operator has chosen, which the user's code may change (``dictConfig``, absl)."""

    handlers: tuple[logging.Handler, ...] = ()  # of the root logger
    level = logging.NOTSET
    apart: frozenset[str] = frozenset()  # loggers of the server that no longer depend on the root logger
    warned = False


def remember() -> None:
    """Remember the present configuration as the operator's: before the user's code runs, and when a HUP has read it again."""
    root = logging.getLogger()
    _Operator.handlers, _Operator.level = tuple(root.handlers), root.level
    _enable()  # without a word: a script may have disabled them before it started the server


def mend() -> None:
    """Let the server's lines appear again if the user's code has silenced them. To be called often; costs little.

    A configuration of the user's code remains for the lines of that code. Under another server logging is the user's affair, and
    nothing was remembered.
    """
    if not _Operator.handlers:
        return
    root = logging.getLogger()
    causes = []
    if root.manager.disable:
        logging.disable(logging.NOTSET)
        causes.append("logging.disable()")
    if any(logging.getLogger(name).disabled for name in _SENTINELS):
        _enable()
        causes.append("disable_existing_loggers")
    is_changed = root.level > _Operator.level or not set(_Operator.handlers) <= set(root.handlers)
    if is_changed and _part_from_root():
        causes.append("the handlers or the level of the root logger")
    if causes and not _Operator.warned:
        _Operator.warned = True
        logger.warning(
            "the model's code has configured logging so that lines of the server would be lost (%s). They are logged on as the"
            " options say; the model's own lines follow its configuration.",
            ", ".join(causes),
        )


def _enable() -> None:
    for name in list(logging.getLogger().manager.loggerDict):  # which another thread may extend
        if name.partition(".")[0] in _FAMILIES:
            logging.getLogger(name).disabled = False


def _part_from_root() -> bool:
    """Give the server's loggers for themselves what they had from the root logger. Returns whether anything was to be done."""
    parted = False
    for name in _FAMILIES:
        family = logging.getLogger(name)
        missing = [handler for handler in _Operator.handlers if handler not in family.handlers]
        if family.propagate and missing:
            family.handlers += missing
            family.propagate = False
            parted = True
            if family.level == logging.NOTSET:
                family.setLevel(_Operator.level)
                _Operator.apart |= {name}
    return parted
