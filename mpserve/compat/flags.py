"""``kserve.model_server.parser``: the argparse parent of scripts, with the SDK's flags only.

Other flags would conflict with the script's own (``--model_dir``). ``ModelServer`` reads the command line itself, so all options
of mpserve work with a script too.
"""

from mpserve.config.command_line import KSERVE_FLAGS_IGNORED, argument_parser
from mpserve.config.options import options_of
from mpserve.config.settings import Settings

_SDK_FLAGS = KSERVE_FLAGS_IGNORED.keys() | {
    "enable_docs_url", "enable_grpc", "enable_predictor_health_check", "event_loop", "grpc_max_receive_message_length",
    "grpc_max_send_message_length", "grpc_port", "http_port", "log_config_file", "model_name", "predictor_host",
    "predictor_protocol", "predictor_request_retries", "predictor_request_timeout_seconds", "predictor_use_ssl",
    "ssl_certfile", "ssl_keyfile", "timeout_keep_alive", "workers",
}  # fmt: skip
_OPTIONS = {option.name for option in options_of(Settings)}

parser = argument_parser(leave_out=_OPTIONS - _SDK_FLAGS)

# The defaults are the values of the environment, so that a script that passes them to ModelServer does not override these.
_values = {name: getattr(Settings.from_environment(), name) for name in _SDK_FLAGS & _OPTIONS}
parser.set_defaults(**{name: value for name, value in _values.items() if value is not None})
