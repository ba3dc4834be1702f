"""All options of the server. Flags, environment variables, checks and ``docs/reference/options.md`` are made from them.

Only this module reads options from ``os.environ``. It must not act on an option: it opens no file and looks for no device.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mpserve.config.kinds import (
    ADDRESS,
    ADMIN_ADDRESS,
    ATTRIBUTES,
    DEVICES,
    FUNCTION,
    HOST,
    ORIGINS,
    PUBLIC_PARTS,
    SINK,
)
from mpserve.config.options import BYTES, WHOLE, option, options_of, others_of, read_environment, service_links
from mpserve.errors import ConfigurationError

_WORKERS = "WEB_CONCURRENCY"
_TLS_PORT = 8443  # the default port of the kserve SDK (0.21) with TLS


MODELS, LISTENING, CALLERS, WORKERS = "What to serve", "Listening", "Who may", "Workers"
BATCHING, OVERLOAD = "Batching", "Overload"
LIFE, LIMITS, PROTOCOL, TRANSFORMER, LOGS = "Life", "Limits", "Protocol", "Transformer", "Logs"
"""The groups of options."""


@dataclass(frozen=True)
class Settings:
    """The options of one server, checked. Raises ConfigurationError, which names the option and the expected value.

    A text is read into the option's type, so ``Settings(max_body_size="64MiB")`` is valid too.
    """

    # fmt: off
    target: str | None = option(
        None, MODELS,
        "A model: a model file or folder, model.py, model.py:Class, package.module:object, or a script that starts a ModelServer",
        flag=None,
    )
    model_dir: str | None = option(
        None, MODELS, "Folder of the model's files, or of a folder for each model; or its address, such as s3://bucket/folder",
        env=("MLSERVER_MODEL_URI",),
    )
    cache_dir: str | None = option(
        None, MODELS,
        "Folder that keeps models fetched from an address; otherwise mpserve/models in $XDG_CACHE_HOME or ~/.cache",
    )
    model_name: str | None = option(None, MODELS, "Name to serve the model by, not its own", env=("MLSERVER_MODEL_NAME",))
    allow_pickle: bool = option(
        True, MODELS, "Serve pickles (.joblib, .pkl, .pickle), which may run any code of their author when they are loaded"
    )
    trusted_types: str | None = option(
        None, MODELS, "Types that a .skops file may hold besides those that skops trusts, separated by commas"
    )
    predict_proba: bool = option(
        False, MODELS, "Answer with the probabilities of a classifier's file if a client asks for no output by name",
        env=("PREDICT_PROBA",),
    )
    return_probabilities: bool = option(
        False, MODELS, "Answer with the probability of each label of a Hugging Face model if a client asks for no output by name"
    )
    kserve_names: bool = option(
        True, MODELS,
        "Let `import kserve` import mpserve, and what mpserve lacks from the kserve SDK if that is installed; otherwise all of"
        " it from the SDK",
    )
    ignore_unknown_flags: bool = option(
        False, MODELS, "Report and ignore flags that mpserve does not know, as the image does; otherwise they are an error"
    )

    host: str = option("0.0.0.0", LISTENING, "Address to listen on", kind=HOST)
    http_port: int = option(8080, LISTENING, f"Port; {_TLS_PORT} with TLS", minimum=0, maximum=65535, env=("MLSERVER_HTTP_PORT",))
    ssl_certfile: str | None = option(None, LISTENING, "PEM file of the certificate; turns TLS on", env=("KSERVE_TLS_CERT_FILE",))
    ssl_keyfile: str | None = option(
        None, LISTENING, "PEM file of the private key, unless ssl_certfile contains it", env=("KSERVE_TLS_KEY_FILE",)
    )
    ssl_ca_certs: str | None = option(
        None, LISTENING, "PEM file of the authorities of clients' certificates; clients without a certificate are refused"
    )
    enable_grpc: bool = option(True, LISTENING, "Serve gRPC too, if mpserve[grpc] is installed")
    grpc_port: int = option(8081, LISTENING, "Port of gRPC", minimum=0, maximum=65535, env=("MLSERVER_GRPC_PORT",))
    management: str = option(
        "same-host", LISTENING,
        "Whose requests may load and unload models, register shared memory, and read and change log and trace settings",
        choices=("same-host", "anywhere", "off"),
    )

    admin_bind: str | None = option(
        None, LISTENING,
        "PORT, HOST:PORT or unix:PATH at which alone metrics, management and the status page answer; the rest answers there too",
        kind=ADMIN_ADDRESS,
    )
    cors_origins: str | None = option(
        None, LISTENING, "Origins, separated by commas, whose pages may send requests from a browser (CORS); *: any", kind=ORIGINS
    )

    api_keys_file: str | None = option(
        None, CALLERS, "File of lines NAME KEY or NAME sha256:DIGEST; requests without one of these keys are refused"
    )
    authenticate: str | None = option(
        None, CALLERS,
        "A function, model.py:function or package.module:function, that returns the caller's name from the headers and the"
        " address, or None; requests of callers without a name, and without a key, are refused", kind=FUNCTION,
    )
    managers: str | None = option(
        None, CALLERS,
        "Names of the callers, separated by commas, that may manage the server if callers are known, as far as management allows",
    )
    public: str = option(
        "health", CALLERS, "What answers to everybody if callers are known: none, or a list of health, metrics and docs",
        kind=PUBLIC_PARTS,
    )

    workers: int = option(1, WORKERS, "Number of worker processes", env=(_WORKERS,), minimum=1)
    devices: str = option(
        "auto", WORKERS, "Devices of the workers in turn: auto, cpu, or a list such as cuda:0,cuda:1", kind=DEVICES
    )
    threads: int = option(0, WORKERS, "Native threads per worker; 0: an equal share of the CPUs", minimum=0)
    preload: bool = option(
        True,
        WORKERS,
        "Import and preload the models once, before the workers exist, so that the workers share the memory; otherwise each"
        " worker does it. No effect on the objects of a script",
    )
    reseed: bool = option(
        True, WORKERS, "Seed random, numpy and torch anew in each worker before load(); otherwise workers draw the same numbers"
    )
    event_loop: str = option(
        "auto", WORKERS, "Event loop of a worker", flag="--event-loop", choices=("auto", "asyncio", "uvloop")
    )
    fast_lane: bool = option(
        True, WORKERS, "Answer inference requests without ASGI, unless the application has middleware of its own"
    )

    max_batch_size: int | None = option(
        None, BATCHING,
        "Maximum rows per batch; 0 disables batching. By default only files of models that answer each row alone are batched,"
        " up to 64 rows",
        kind=WHOLE, minimum=0,
    )
    max_batch_delay: float = option(0.0, BATCHING, "Seconds for which an idle model waits for more rows of a batch", minimum=0)

    max_queue_size: int = option(
        0, OVERLOAD, "Maximum requests in the queue of a model in one worker; further requests are refused; 0: no maximum",
        minimum=0,
    )
    max_in_flight: int = option(
        0, OVERLOAD, "Maximum requests of a model in flight, in all workers together; further requests get 429; 0: no maximum",
        minimum=0,
    )
    max_rate: float = option(
        0.0, OVERLOAD, "Maximum requests to a model per second, in all workers together; further requests get 429; 0: no maximum",
        minimum=0,
    )
    max_in_flight_per_caller: int = option(
        0, OVERLOAD, "As max_in_flight, of each caller, for all models together; callers must be known", minimum=0
    )
    max_rate_per_caller: float = option(
        0.0, OVERLOAD, "As max_rate, of each caller, for all models together; callers must be known", minimum=0
    )
    priority_levels: int = option(
        0, OVERLOAD,
        "Levels of the request parameter priority, by which the queue of a model is in order; 1 is the first; 0: no levels",
        minimum=0,
    )
    default_priority_level: int = option(
        0, OVERLOAD, "Level of requests without the parameter priority, from 1 to priority_levels", minimum=0
    )
    request_timeout: float = option(
        0.0, OVERLOAD, "Deadline of an inference request in seconds, including its time in the queue; 0: none", minimum=0
    )
    stuck_grace: float = option(
        30.0,
        OVERLOAD,
        "Seconds after request_timeout at which a running predict is stuck and its worker is replaced;"
        " no effect without request_timeout",
        minimum=0.1,
    )
    stuck_timeout: float = option(
        600.0,
        OVERLOAD,
        "Seconds at which a running predict without a request_timeout is stuck and its worker is replaced; 0: never",
        minimum=0,
    )

    load_timeout: float = option(600.0, LIFE, "Seconds in which a worker must load its models", minimum=0.1)
    ready_when: str = option(
        "any", LIFE, "The server is ready when any worker, or all workers, have loaded every model", choices=("any", "all")
    )
    drain_delay: float = option(
        0.0, LIFE, "Seconds for which a stopping server says that it is not ready and still accepts connections", minimum=0
    )
    grpc_max_connection_age: float = option(
        10.0, LIFE,
        "Seconds after which a gRPC client is told to use a new connection, or half of the time in which a worker must stop,"
        " if that is less: it answers busy clients for as long; 0: never, and calls may be lost when a worker stops",
        minimum=0, maximum=86400,
    )
    max_requests: int = option(
        0, LIFE, "Requests over HTTP and gRPC after which a worker is replaced; 0: never", minimum=0
    )
    max_requests_jitter: int = option(
        0, LIFE, "Maximum random number that is added to max_requests, so that workers are replaced at different times",
        minimum=0,
    )
    max_rss: int = option(
        0, LIFE,
        "Bytes of memory, such as 4GiB, at which a worker is replaced; memory that workers share counts in each; 0: never",
        kind=BYTES, minimum=0,
    )
    graceful_timeout: int = option(25, LIFE, "Seconds in which a stopping worker must finish", minimum=1)
    timeout: int = option(60, LIFE, "Seconds without a heartbeat after which a worker is killed", minimum=4)

    timeout_keep_alive: int = option(
        120, LIMITS, "Seconds after which an idle connection is closed; set more than the proxy in front of the server",
        flag="--timeout-keep-alive", minimum=1,
    )
    max_connections: int = option(
        10_000, LIMITS,
        "Maximum HTTP connections of a worker, at most its limit of open files less 128; idle ones make room for new ones",
        minimum=1,
    )
    header_timeout: float = option(10.0, LIMITS, "Seconds in which the head of a request must arrive", minimum=0.1)
    body_timeout: float = option(60.0, LIMITS, "Maximum pause within a request body in seconds", minimum=0.1)
    min_body_rate: int = option(
        240, LIMITS, "Minimum bytes per second of a request body, after its first body_timeout seconds; 0: no minimum", minimum=0
    )
    write_timeout: float = option(
        60.0, LIMITS, "Seconds after which a client that takes nothing of its answer is dropped", minimum=0.1
    )
    max_body_size: int = option(
        128 * 1024**2, LIMITS, "Maximum bytes of a request body, such as 1048576, 64MiB or 1GB", kind=BYTES, minimum=1
    )
    max_json_size: int = option(
        32 * 1024**2, LIMITS, "Maximum bytes of JSON in a request, which takes many times its size in memory",
        kind=BYTES, minimum=1,
    )
    max_json_elements: int = option(
        2_000_000, LIMITS, "Maximum lists, objects and strings in the JSON of a request, counted by their brackets and quotes",
        minimum=1,
    )
    max_compression_ratio: int = option(
        200, LIMITS,
        "How many times its size a compressed body may expand to, if that is more than 4 MiB; 0: any number of times", minimum=0,
    )
    grpc_max_receive_message_length: int = option(
        128 * 1024**2, LIMITS, "Maximum bytes of a gRPC message that is received, such as 1048576 or 64MiB", kind=BYTES
    )
    grpc_max_send_message_length: int = option(2**31 - 1, LIMITS, "Maximum bytes of a gRPC message that is sent", kind=BYTES)

    nonfinite: Literal["error", "null"] = option(
        "error", PROTOCOL, "How NaN and infinity are written in JSON, which has no numbers for them", choices=("error", "null")
    )
    ce_source: str | None = option(None, PROTOCOL, "Source of CloudEvents in answers", env=("CE_SOURCE",))
    ce_type: str | None = option(None, PROTOCOL, "Type of CloudEvents in answers", env=("CE_TYPE",))
    ce_merge: bool = option(False, PROTOCOL, "Copy the attributes of a CloudEvent to its answer", env=("CE_MERGE",))
    enable_docs_url: bool = option(False, PROTOCOL, "Show the API at /docs, with a form to try each route")
    enable_status_page: bool = option(
        True, PROTOCOL, "Show workers, models and their figures at / to a browser, and at /status to a program"
    )
    allow_client_shm: bool = option(False, PROTOCOL, "Let clients register system shared memory and send tensors through it")

    predictor_host: str | None = option(
        None, TRANSFORMER,
        "host or host:port of the predictor, the server that answers for models without a predict of their own", kind=ADDRESS,
    )
    predictor_protocol: str = option(
        "v1", TRANSFORMER, "Protocol of the requests to the predictor", choices=("v1", "v2", "grpc-v2")
    )
    predictor_use_ssl: bool = option(False, TRANSFORMER, "Use TLS to the predictor")
    predictor_ca_file: str | None = option(
        None, TRANSFORMER,
        "PEM file of the authorities that verify the predictor's certificate; without it the usual public authorities",
        env=("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"),
    )
    predictor_request_timeout_seconds: float = option(
        600.0, TRANSFORMER, "Seconds in which the predictor must answer, including all retries", minimum=0.1
    )
    predictor_request_retries: int = option(
        0, TRANSFORMER, "Maximum retries if the predictor cannot be reached or is not ready", minimum=0
    )
    enable_predictor_health_check: bool = option(
        False, TRANSFORMER, "Be ready only while the predictor says that its model of the same name is ready"
    )

    log_level: str = option(
        "info", LOGS, "The least severe level that is logged", env=("KSERVE_LOGLEVEL",),
        choices=("debug", "info", "warning", "error", "critical"),
    )
    log_format: str = option("text", LOGS, "Lines of text, or of a JSON object each", choices=("text", "json"))
    log_config_file: str | None = option(
        None, LOGS, "YAML or JSON file in the form of logging.config.dictConfig, which overrides the options above"
    )
    access_log: bool = option(False, LOGS, "Log one line for each request")
    log_url: str | None = option(
        None, LOGS, "Where requests and answers go: as CloudEvents to http(s)://…, or as lines of JSON to file:///folder",
        kind=SINK,
    )
    log_mode: str = option(
        "all", LOGS, "What goes to log_url: all, request or response", choices=("all", "request", "response")
    )
    log_sampling: float = option(1.0, LOGS, "The share of requests that goes to log_url", minimum=0, maximum=1)
    log_attributes: str | None = option(
        None, LOGS, "Attributes of the events for log_url, such as inferenceservicename=iris,namespace=default,endpoint=default",
        kind=ATTRIBUTES,
    )
    termination_log: str = option(
        "/dev/termination-log", LOGS, "Existing file to which the server writes the reason when it ends with an error"
    )
    # fmt: on

    def __post_init__(self) -> None:
        for each in options_of(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(self, name) and not self.ssl_certfile:
                raise ConfigurationError(
                    f"{name}: got {getattr(self, name)!r} without ssl_certfile, expected both, or ssl_certfile alone"
                )

        if self.admin_port == self.http_port:
            raise ConfigurationError(
                f"admin_bind: got {self.admin_bind!r}, expected another port than that of http_port"
            )
        for name in ("managers", "max_in_flight_per_caller", "max_rate_per_caller"):
            if getattr(self, name) and not self.knows_callers:
                raise ConfigurationError(
                    f"{name}: got {getattr(self, name)!r} without api_keys_file and authenticate, expected one of these too"
                )

    @property
    def knows_callers(self) -> bool:
        """Whether the server answers known callers only."""
        return bool(self.api_keys_file or self.authenticate)

    @property
    def admin_port(self) -> int | None:
        """The port of ``admin_bind``; None: it is no port."""
        if self.admin_bind is None or self.admin_bind.startswith("unix:"):
            return None
        return int(self.admin_bind.rpartition(":")[2])

    def body_limit(self, is_json: bool) -> int:
        """Maximum bytes of a request body, which is JSON as a whole or not."""
        return min(self.max_body_size, self.max_json_size) if is_json else self.max_body_size

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **overrides: Any) -> "Settings":
        """The settings of the environment. ``overrides`` that are not None override it. Raises ConfigurationError.

        With a certificate and without a port, the port is 8443.
        """
        options = options_of(cls)
        names = {each.name for each in options}
        for name in overrides.keys() - names:
            closest = difflib.get_close_matches(name, names, n=1) or sorted(names)
            raise ConfigurationError(f"{name}: there is no such option, expected {' or '.join(closest)}")
        values: dict[str, Any] = dict(read_environment(options, environ))
        values |= {name: value for name, value in overrides.items() if value is not None}
        if "ssl_certfile" in values:
            values.setdefault("http_port", _TLS_PORT)
        return cls(**values)


@contextmanager
def without_worker_variable() -> Iterator[None]:
    """Hide ``WEB_CONCURRENCY`` from code that reads it by itself."""
    value = os.environ.pop(_WORKERS, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[_WORKERS] = value


def ignored_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of our options that Kubernetes has set for a Service, so that they are no options."""
    return service_links(options_of(Settings), environ)


def unused_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables of MLServer that are set and are no options here."""
    return others_of("MLSERVER_", options_of(Settings), environ)
