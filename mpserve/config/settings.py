"""Every option of the server, declared once: flags, environment variables, checks and ``docs/options.md`` come from here.

The only module that reads ``os.environ`` for options. It must not know who uses an option, nor act on one: it opens no file,
looks for no device. ``python -m mpserve.config.settings`` prints ``docs/options.md``.
"""

import argparse
import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mpserve.config.options import (
    BYTES,
    TEXT,
    Kind,
    Option,
    build_parser,
    markdown,
    option,
    options_of,
    read_environment,
    read_words,
)
from mpserve.errors import ConfigurationError

_TLS_PORT = 8443  # where the kserve SDK (0.21) listens with TLS when no port was asked for


def _device_list(text: str) -> str:
    devices = re.sub(r"\s", "", text).lower()
    if not re.fullmatch(r"auto|cpu|cuda:[0-9]+(,cuda:[0-9]+)*", devices):
        raise ValueError(text)
    return devices


def _address(text: str) -> str:
    if not text or re.search(r"\s|://", text):
        raise ValueError(text)
    return text


_DEVICES = Kind(str, "auto, cpu or a list such as cuda:0,cuda:1", _device_list)
_ADDRESS = Kind(str, "a host or host:port, without http:// (--predictor_use_ssl turns TLS on)", _address)


@dataclass(frozen=True)
class Settings:
    """The options of one server, checked. Raises ConfigurationError that names the option and what was expected.

    Text is read into an option's type whichever way it comes in, so ``Settings(max_body_size="64MiB")`` is fine too.
    """

    target: str | None = option(
        None,
        "What to serve",
        "A model: model.py, model.py:Class, package.module:object, or a script that starts a ModelServer",
        flag=None,
    )
    model_dir: str | None = option(
        None, "What to serve", "Folder of the model's files, or of folders with a model each"
    )
    model_name: str | None = option(None, "What to serve", "Name to serve the model under, whatever it calls itself")
    kserve_names: bool = option(
        False,
        "What to serve",
        "Let `import kserve` mean mpserve even where the kserve SDK is installed; where it is not, it always does",
    )

    host: str = option("0.0.0.0", "Listening", "Address to listen on")
    http_port: int = option(
        8080, "Listening", f"Port; {_TLS_PORT} when TLS is on and no port is given", minimum=0, maximum=65535
    )
    ssl_certfile: str | None = option(
        None, "Listening", "PEM file of the certificate; turns TLS on", env=("KSERVE_TLS_CERT_FILE",)
    )
    ssl_keyfile: str | None = option(
        None, "Listening", "PEM file of the private key, unless ssl_certfile holds it", env=("KSERVE_TLS_KEY_FILE",)
    )

    enable_grpc: bool = option(True, "Listening", "Serve gRPC too, where mpserve[grpc] is installed")
    grpc_port: int = option(8081, "Listening", "Port of gRPC", minimum=0, maximum=65535)

    workers: int = option(1, "Workers", "Number of worker processes", env=("WEB_CONCURRENCY",), minimum=1)
    devices: str = option(
        "auto",
        "Workers",
        "Where the workers' models run: auto, cpu, or a list such as cuda:0,cuda:1 that is dealt out in turn",
        kind=_DEVICES,
    )
    threads: int = option(0, "Workers", "Native threads per worker; 0 shares the CPUs out", minimum=0)
    event_loop: str = option(
        "auto", "Workers", "Event loop of a worker", flag="--event-loop", choices=("auto", "asyncio", "uvloop")
    )

    fast_lane: bool = option(
        True,
        "Workers",
        "Answer plain inference requests without an ASGI cycle; an application with middleware of its own never does",
    )

    max_batch_size: int = option(
        0, "Batching", "Rows that a model is given at most, of several requests together; 0 joins none", minimum=0
    )
    max_batch_delay: float = option(
        0.0, "Batching", "Seconds for which an idle model waits for a fuller batch", minimum=0
    )

    max_queue_size: int = option(
        0,
        "Overload",
        "Requests that may wait for a model in a worker, beyond those that it answers at once; more are refused. 0: any number",
        minimum=0,
    )
    request_timeout: float = option(
        0.0,
        "Overload",
        "Seconds in which an inference request must be answered, its time in the queue included; 0: any time",
        minimum=0,
    )
    stuck_grace: float = option(
        30.0,
        "Overload",
        "Seconds beyond request_timeout after which a predict that still runs is stuck and its worker is replaced;"
        " without a request_timeout none is",
        minimum=0.1,
    )

    load_timeout: float = option(600.0, "Life", "Seconds in which a worker must load its models", minimum=0.1)
    ready_when: str = option(
        "any", "Life", "Ready is: every model loaded in any worker, or in all workers", choices=("any", "all")
    )
    drain_delay: float = option(
        0.0,
        "Life",
        "Seconds for which a stopping server says that it is not ready and still accepts",
        minimum=0,
    )
    graceful_timeout: int = option(25, "Life", "Seconds in which a stopping worker must finish", minimum=1)
    timeout: int = option(60, "Life", "Seconds without a heartbeat after which a worker is killed", minimum=4)

    timeout_keep_alive: int = option(
        120,
        "Limits",
        "Seconds for which an idle connection is kept; let it be more than the proxy in front keeps its own",
        flag="--timeout-keep-alive",
        minimum=1,
    )
    header_timeout: float = option(10.0, "Limits", "Seconds in which the head of a request must arrive", minimum=0.1)
    body_timeout: float = option(
        60.0, "Limits", "Seconds for which the body of a request may pause before it is complete", minimum=0.1
    )
    max_body_size: int = option(
        128 * 1024**2, "Limits", "Bytes of the largest request body; also as 64MiB or 1GB", kind=BYTES, minimum=1
    )
    grpc_max_receive_message_length: int = option(
        128 * 1024**2, "Limits", "Bytes of the largest gRPC message that is taken; 64MiB is understood too", kind=BYTES
    )
    grpc_max_send_message_length: int = option(
        2**31 - 1, "Limits", "Bytes of the largest gRPC message that is sent", kind=BYTES
    )

    nonfinite: Literal["error", "null"] = option(
        "error", "Protocol", "NaN and infinity in a JSON answer, which JSON cannot carry", choices=("error", "null")
    )
    ce_source: str | None = option(None, "Protocol", "Source of the CloudEvents that answer", env=("CE_SOURCE",))
    ce_type: str | None = option(None, "Protocol", "Type of the CloudEvents that answer", env=("CE_TYPE",))
    ce_merge: bool = option(
        False, "Protocol", "Answer CloudEvents with the attributes of the request's", env=("CE_MERGE",)
    )

    enable_docs_url: bool = option(False, "Protocol", "Show the API at /docs, with a form to try each route")
    allow_client_shm: bool = option(
        False, "Protocol", "Let clients register system shared memory and pass tensors through it"
    )

    predictor_host: str | None = option(
        None,
        "Transformer",
        "Host, or host:port, of the predictor: the server that a model asks which does not override predict",
        kind=_ADDRESS,
    )
    predictor_protocol: str = option(
        "v1", "Transformer", "Protocol that the predictor is asked in", choices=("v1", "v2", "grpc-v2")
    )
    predictor_use_ssl: bool = option(False, "Transformer", "Ask the predictor over TLS")
    predictor_ca_file: str | None = option(
        None,
        "Transformer",
        "PEM file of the authorities that the predictor's certificate is verified by; without it the usual public ones",
        env=("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    )
    predictor_request_timeout_seconds: float = option(
        600.0, "Transformer", "Seconds in which the predictor must answer, all retries included", minimum=0.1
    )
    predictor_request_retries: int = option(
        0, "Transformer", "Further attempts when the predictor cannot be reached or is not ready", minimum=0
    )
    enable_predictor_health_check: bool = option(
        False, "Transformer", "Be ready only while the predictor says that its model of the same name is"
    )

    log_level: str = option(
        "info",
        "Logs",
        "The least severe level that is logged",
        env=("KSERVE_LOGLEVEL",),
        choices=("debug", "info", "warning", "error", "critical"),
    )
    log_format: str = option("text", "Logs", "Lines for people, or a JSON object in each", choices=("text", "json"))
    log_config_file: str | None = option(
        None, "Logs", "YAML or JSON file in the form of logging.config.dictConfig, laid over the settings above"
    )
    access_log: bool = option(False, "Logs", "Log one line for each request")
    termination_log: str = option(
        "/dev/termination-log", "Logs", "File, if it exists, that is left the reason when the server cannot go on"
    )

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigurationError(
                f"ssl_keyfile: got {self.ssl_keyfile!r} without ssl_certfile, expected both, or ssl_certfile alone"
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> "Settings":
        """The settings that the environment asks for; ``overrides`` that are not None come before it.

        With a certificate and no port from either, the port is 8443. Raises ConfigurationError.
        """
        options = options_of(cls)
        names = {each.name for each in options}
        for name in overrides.keys() - names:
            closest = difflib.get_close_matches(name, names, n=1) or sorted(names)
            raise ConfigurationError(f"{name}: there is no such option, expected {' or '.join(closest)}")
        given = {name: value for name, value in overrides.items() if value is not None}
        values: dict[str, Any] = read_environment(options, environ) | given
        if "ssl_certfile" in values:
            values.setdefault("http_port", _TLS_PORT)
        return cls(**values)


_OWN_THREAD = "sync models run in a thread of their own"
_LOGGING = "use --log_config_file, --log_format and --access_log"

KSERVE_FLAGS_IGNORED: dict[str, str] = {
    "max_threads": "gRPC runs on the event loop",
    "max_asyncio_workers": _OWN_THREAD,
    "enable_latency_logging": "durations are in /metrics",
    "configure_logging": _LOGGING,
    "access_log_format": _LOGGING,
    "protocol": "V1 and V2 are always both offered",
}
"""Flags of the kserve SDK that are accepted and have no effect, each with the reason."""


_IGNORED = tuple(
    Option(name, None, TEXT, "Without effect", reason, f"--{name}") for name, reason in KSERVE_FLAGS_IGNORED.items()
)


class Parsed(NamedTuple):
    """A command line, read. ``ignored`` are keys of KSERVE_FLAGS_IGNORED; ``unknown`` are words that mean nothing here."""

    settings: Settings
    ignored: list[str]
    unknown: list[str]


def parse(argv: Sequence[str], environ: Mapping[str, str] = os.environ, **overrides: Any) -> Parsed:
    """Read a command line (without the program's name): defaults < ``environ`` < ``argv`` < ``overrides`` that are not None.

    The first word that belongs to no flag is the target. What is not understood is handed back, not an error, as in the
    kserve SDK; arguments of its ``ModelServer`` that have no effect are allowed among ``overrides``. Raises ConfigurationError.
    """
    given, words, unknown = read_words((*options_of(Settings), *_IGNORED), argv)
    values: dict[str, Any] = {**given, **{name: value for name, value in overrides.items() if value is not None}}
    if words:
        values.setdefault("target", words[0])
    ignored = [name for name in values if name in KSERVE_FLAGS_IGNORED]
    settings = Settings.from_environment(environ, **{name: values[name] for name in values.keys() - set(ignored)})
    return Parsed(settings, ignored, [*unknown, *words[1:]])


def argument_parser(leave_out: Collection[str] = ()) -> argparse.ArgumentParser:
    """An argparse parser of all flags, the SDK's without effect included, with defaults and types and without ``--help``.

    For help texts, and as a parent of a script's own parser; ``leave_out`` names the options that the script declares itself.
    """
    parser = build_parser([each for each in (*options_of(Settings), *_IGNORED) if each.name not in leave_out])
    parser.set_defaults(
        **({} if "model_name" in leave_out else {"model_name": "model"})
    )  # the SDK's, which scripts read
    return parser


def documentation() -> str:
    """The text of ``docs/options.md``."""
    ignored = "".join(f"| `--{name}` | {reason} |\n" for name, reason in KSERVE_FLAGS_IGNORED.items())
    return f"""# Options

Written by `python -m mpserve.config.settings > docs/options.md`.

An option comes from its default, the environment, the command line or the arguments of `ModelServer(...)`; the later of these
wins. Flags are read with underscores and with dashes alike, and with a space or a `=` before the value. A variable that is
empty counts as not set; of several variables the first that is set counts. A flag that is not known is reported, and ignored
together with the word after it, so write `--flag=value` or put the target first when in doubt.

{markdown(options_of(Settings))}
## Flags of the kserve SDK without effect

They are accepted, so that a container's arguments need not change, and reported at start.

| Flag | Why |
|---|---|
{ignored}"""


if __name__ == "__main__":
    print(documentation(), end="")
