"""``kserve.model_server.parser``: the argparse parent of scripts, with the flags of the SDK's and no others.

A flag more would clash with one that a script declares itself (``--model_dir``). ``ModelServer`` reads the command line on
its own, so all options of mpserve work with such a script as well.
"""

from mpserve.config.options import options_of
from mpserve.config.settings import KSERVE_FLAGS_IGNORED, Settings, argument_parser

_OFFERED = {
    "access_log_format",
    "configure_logging",
    "enable_docs_url",
    "enable_grpc",
    "enable_latency_logging",
    "enable_predictor_health_check",
    "event_loop",
    "grpc_max_receive_message_length",
    "grpc_max_send_message_length",
    "grpc_port",
    "http_port",
    "log_config_file",
    "max_asyncio_workers",
    "max_threads",
    "model_name",
    "predictor_host",
    "predictor_protocol",
    "predictor_request_retries",
    "predictor_request_timeout_seconds",
    "predictor_use_ssl",
    "protocol",
    "ssl_certfile",
    "ssl_keyfile",
    "timeout_keep_alive",
    "workers",
}
_OPTIONS = {option.name for option in options_of(Settings)}

parser = argument_parser(leave_out=(_OPTIONS | KSERVE_FLAGS_IGNORED.keys()) - _OFFERED)

# What a script reads and hands to ModelServer must not take the place of what the environment says.
_environment = Settings.from_environment()
parser.set_defaults(
    **{name: getattr(_environment, name) for name in _OFFERED & _OPTIONS if getattr(_environment, name) is not None}
)
