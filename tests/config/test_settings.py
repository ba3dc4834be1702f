import argparse
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.command_line import KSERVE_FLAGS_IGNORED, argument_parser, documentation, parse
from mpserve.config.options import options_of
from mpserve.config.settings import Settings, ignored_variables, unused_variables
from mpserve.errors import ConfigurationError
from tests.cases import each

ROOT = Path(__file__).parents[2]
OPTIONS = options_of(Settings)

# For every option: a text, what it is read as, and a text that is refused (None: any text will do).
SAMPLES: dict[str, tuple[str, object, str | None]] = {
    "target": ("model.py:Digits", "model.py:Digits", None), "model_dir": ("/mnt/models", "/mnt/models", None),
    "cache_dir": ("/models", "/models", None),
    "model_name": ("digits", "digits", None), "allow_pickle": ("no", False, "perhaps"),
    "trusted_types": ("a.B,c.D", "a.B,c.D", None), "predict_proba": ("true", True, "perhaps"),
    "return_probabilities": ("true", True, "perhaps"),
    "kserve_names": ("no", False, "perhaps"), "ignore_unknown_flags": ("yes", True, "perhaps"),
    "host": ("[::1]", "::1", "0.0.0.0:8080"),
    "http_port": ("0", 0, "65536"), "ssl_certfile": ("tls.crt", "tls.crt", None),
    "ssl_keyfile": ("tls.key", "tls.key", None), "ssl_ca_certs": ("ca.crt", "ca.crt", None),
    "enable_grpc": ("no", False, "perhaps"),
    "grpc_port": ("0", 0, "65536"), "management": ("Anywhere", "anywhere", "nowhere"),
    "admin_bind": ("[::1]:9090", "::1:9090", "0"),
    "cors_origins": ("https://a.example , http://b:3000", "https://a.example,http://b:3000", "https://a.example/path"),
    "api_keys_file": ("keys", "keys", None), "authenticate": ("auth.py:check", "auth.py:check", "auth"),
    "managers": ("ops, bob", "ops, bob", None), "public": ("Health, docs", "health,docs", "health,none"),
    "workers": ("4", 4, "0"), "devices": ("cuda:0, cuda:1", "cuda:0,cuda:1", "gpu"),
    "threads": ("3", 3, "-1"), "preload": ("no", False, "perhaps"), "reseed": ("no", False, "perhaps"),
    "event_loop": ("asyncio", "asyncio", "trio"), "fast_lane": ("no", False, "perhaps"),
    "max_batch_size": ("32", 32, "-1"), "max_batch_delay": ("0.005", 0.005, "-1"), "max_queue_size": ("100", 100, "-1"),
    "max_in_flight": ("8", 8, "-1"), "max_rate": ("2.5", 2.5, "-1"), "max_in_flight_per_caller": ("8", 8, "-1"),
    "max_rate_per_caller": ("2.5", 2.5, "-1"), "priority_levels": ("3", 3, "-1"), "default_priority_level": ("2", 2, "-1"),
    "request_timeout": ("0.5", 0.5, "-1"), "stuck_grace": ("10", 10.0, "0"), "stuck_timeout": ("0", 0.0, "-1"),
    "load_timeout": ("1.5", 1.5, "nan"), "ready_when": ("all", "all", "some"), "drain_delay": ("5", 5.0, "-0.1"),
    "grpc_max_connection_age": ("30", 30.0, "-1"), "max_requests": ("1000", 1000, "-1"),
    "max_requests_jitter": ("50", 50, "-1"), "max_rss": ("4GiB", 4 * 1024**3, "64 apples"),
    "graceful_timeout": ("20", 20, "20.5"), "timeout": ("4", 4, "3"), "timeout_keep_alive": ("65", 65, "0"),
    "max_connections": ("5", 5, "0"), "header_timeout": ("2.5", 2.5, "inf"),
    "body_timeout": ("2.5", 2.5, "0"), "min_body_rate": ("0", 0, "-1"), "write_timeout": ("2.5", 2.5, "0"),
    "max_body_size": ("64MiB", 64 * 1024**2, "64 apples"),
    "max_json_size": ("1MB", 10**6, "0"), "max_json_elements": ("500", 500, "0"), "max_compression_ratio": ("0", 0, "-1"),
    "grpc_max_receive_message_length": ("64MiB", 64 * 1024**2, "64 apples"),
    "grpc_max_send_message_length": ("1GiB", 1024**3, "64 apples"), "nonfinite": ("null", "null", "zero"),
    "ce_source": ("io.mine", "io.mine", None), "ce_type": ("io.mine.answer", "io.mine.answer", None),
    "ce_merge": ("true", True, "perhaps"), "enable_docs_url": ("true", True, "perhaps"),
    "enable_status_page": ("no", False, "perhaps"), "allow_client_shm": ("yes", True, "perhaps"),
    "predictor_host": ("m-predictor.ns:8080", "m-predictor.ns:8080", "http://m-predictor"),
    "predictor_protocol": ("GRPC-V2", "grpc-v2", "v3"), "predictor_use_ssl": ("true", True, "perhaps"),
    "predictor_ca_file": ("ca.pem", "ca.pem", None), "predictor_request_timeout_seconds": ("30", 30.0, "0"),
    "predictor_request_retries": ("2", 2, "-1"), "enable_predictor_health_check": ("true", True, "perhaps"),
    "log_level": ("WARNING", "warning", "loud"), "log_format": ("json", "json", "xml"),
    "log_config_file": ("logging.yaml", "logging.yaml", None), "access_log": ("yes", True, "perhaps"),
    "log_url": ("file:///logs", "file:///logs", "logs"),
    "log_mode": ("Request", "request", "none"), "log_sampling": ("0.5", 0.5, "1.1"),
    "log_attributes": ("a=b, c=d", "a=b,c=d", "A=b"),
    "termination_log": ("/tmp/reason", "/tmp/reason", None),
}  # fmt: skip
NEEDED_TOO = {
    "ssl_keyfile": {"ssl_certfile": "tls.crt"},
    "ssl_ca_certs": {"ssl_certfile": "tls.crt"},
    **{name: {"api_keys_file": "keys"} for name in ("managers", "max_in_flight_per_caller", "max_rate_per_caller")},
}
READ = [(name, text, value) for name, (text, value, _) in SAMPLES.items()]
REFUSED = [(name, text) for name, (_, _, text) in SAMPLES.items() if text is not None]


def test_every_option_has_a_sample_here() -> None:
    assert list(SAMPLES) == [option.name for option in OPTIONS]


def test_the_default_environment_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSERVE_WORKERS", "9")
    assert Settings.from_environment().workers == 9
    assert parse([]).settings.workers == 9


@each("name, text, value", READ)
def test_an_option_is_read_from_its_variable(name: str, text: str, value: object) -> None:
    settings = Settings.from_environment({f"MPSERVE_{name.upper()}": text}, **NEEDED_TOO.get(name, {}))
    got = getattr(settings, name)
    assert (got, type(got)) == (value, type(value))


@each("separators", ["as declared", "_", "-"])
@each("joint", ["=", " "])
@each("name, text, value", [sample for sample in READ if sample[0] != "target"])
def test_a_flag_is_read_in_both_spellings(name: str, text: str, value: object, joint: str, separators: str) -> None:
    declared = next(option.flag for option in OPTIONS if option.name == name)
    assert declared is not None
    flag = declared if separators == "as declared" else "--" + re.sub("[_-]", separators, declared[2:])
    argv = [f"{flag}={text}"] if joint == "=" else [flag, text]
    parsed = parse(argv, {}, **NEEDED_TOO.get(name, {}))
    assert getattr(parsed.settings, name) == value
    assert (parsed.ignored, parsed.unknown) == ([], [])


@each("name, text, value", READ)
def test_an_option_is_read_from_text_and_from_its_own_type_alike(name: str, text: str, value: object) -> None:
    more: dict[str, Any] = NEEDED_TOO.get(name, {})
    assert Settings(**{name: text, **more}) == Settings(**{name: value, **more})


@each("name, text", REFUSED)
def test_a_bad_value_is_refused_naming_option_value_and_expectation(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Settings.from_environment({f"MPSERVE_{name.upper()}": text})
    assert re.match(
        rf"{name} \(.*MPSERVE_{name.upper()}.*\): got {re.escape(repr(text))}, expected ", str(refusal.value)
    )


@each("option, message", [
    ({"http_port": 65536}, "MLSERVER_HTTP_PORT): got 65536, expected a whole number from 0 to 65535"),
    ({"workers": 0}, "workers (--workers, MPSERVE_WORKERS, WEB_CONCURRENCY): got 0, expected a whole number, at least 1"),
    ({"workers": True}, "got True, expected a whole number"), ({"workers": 2.0}, "got 2.0, expected a whole number"),
    ({"workers": None}, "got None, expected a whole number"), ({"workers": "9" * 5000}, "expected a whole number"),
    ({"load_timeout": 10**400}, "expected a number, at least 0.1"),
    ({"max_body_size": "9" * 400}, "expected a number of bytes such as 1048576 or 64MiB, at least 1"),
    ({"access_log": 1}, "got 1, expected true or false"),
    ({"ready_when": "both"}, "got 'both', expected one of any, all"),
    ({"devices": "cuda:0,cpu"}, "got 'cuda:0,cpu', expected auto, cpu or a list such as cuda:0,cuda:1"),
    ({"model_name": ""}, "got '', expected a text that is not empty"),
    *(({"admin_bind": bad}, f"got '{bad}', expected PORT, HOST:PORT or unix:PATH") for bad in ("unix:", "a:", "http://a:9")),
    ({"admin_bind": "127.0.0.1:8080"}, "got '127.0.0.1:8080', expected another port than that of http_port"),
    *(({"cors_origins": bad}, "expected *, or a list of origins") for bad in ("*,http://a", "a.example", "http://a/", "null")),
    ({"ssl_keyfile": "tls.key"}, "ssl_keyfile: got 'tls.key' without ssl_certfile"),
])  # fmt: skip
def test_the_refusal_says_what_to_mend(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        Settings(**option)


@each("text, size", [
    ("1000", 1000), ("64MiB", 64 * 1024**2), ("64Mi", 64 * 1024**2), ("64mib", 64 * 1024**2), ("1GB", 10**9),
    ("1G", 10**9), ("1.5 kB", 1500), ("2TiB", 2 * 1024**4), ("10B", 10),
    *((text, None) for text in ("", "-1", "MiB", "1iB", "1e6", "1MiBB", "0x10")),
])  # fmt: skip
def test_sizes_are_understood_as_people_write_them_and_nothing_else(text: str, size: int | None) -> None:
    expected = pytest.raises(ConfigurationError, match="max_body_size") if size is None else nullcontext()
    with expected:
        assert Settings(max_body_size=text).max_body_size == size  # type: ignore[arg-type]


def test_a_variable_that_kubernetes_has_set_for_a_service_counts_as_not_set() -> None:
    environ = {
        "MPSERVE_HTTP_PORT": "tcp://10.43.7.9:80",
        "MPSERVE_GRPC_PORT": "udp://[fd00::1]:53",
        "MPSERVE_WORKERS": "2",
    }
    settings = Settings.from_environment(environ)
    assert (settings.http_port, settings.grpc_port, settings.workers) == (8080, 8081, 2)
    assert list(ignored_variables(environ)) == ["MPSERVE_HTTP_PORT", "MPSERVE_GRPC_PORT"]
    with pytest.raises(ConfigurationError, match="http_port"):
        Settings.from_environment({"MPSERVE_HTTP_PORT": "http://10.43.7.9"})


@each("text, host", [
    ("[::]", "::"), ("::", "::"), ("[fe80::1%eth0]", "fe80::1%eth0"), ("localhost", "localhost"), ("10.1.2.3", "10.1.2.3"),
    *((text, None) for text in ("localhost:8080", "[::1]:8080", "[::1", "[]", "[localhost]", "http://x", "a b", "1::2::3")),
])  # fmt: skip
def test_a_host_is_an_address_or_a_name_and_no_port(text: str, host: str | None) -> None:
    expected = pytest.raises(ConfigurationError, match="host") if host is None else nullcontext()
    with expected:
        assert Settings(host=text).host == host


@each("variable, text, name, value", [
    ("WEB_CONCURRENCY", "3", "workers", 3), ("KSERVE_TLS_CERT_FILE", "tls.pem", "ssl_certfile", "tls.pem"),
    ("KSERVE_LOGLEVEL", "DEBUG", "log_level", "debug"),
])  # fmt: skip
def test_variables_of_others_are_read_after_our_own(variable: str, text: str, name: str, value: object) -> None:
    own = f"MPSERVE_{name.upper()}"
    assert getattr(Settings.from_environment({variable: text}), name) == value
    assert getattr(Settings.from_environment({variable: text, own: ""}), name) == value
    sample, expected, _ = SAMPLES[name]
    assert getattr(Settings.from_environment({variable: text, own: sample}), name) == expected


def test_later_sources_win_over_earlier_ones() -> None:
    environ = {"MPSERVE_WORKERS": "2", "MPSERVE_TIMEOUT": "20", "MPSERVE_THREADS": "2", "MPSERVE_TARGET": "a.py"}
    argv = ["b.py", "--timeout", "30", "--threads=3"]
    settings = parse(argv, environ, threads=4).settings
    assert (settings.workers, settings.timeout, settings.threads) == (2, 30, 4)
    assert settings.target == "b.py"
    assert settings.graceful_timeout == Settings.graceful_timeout
    assert parse(argv, environ, target="c.py").settings.target == "c.py"
    assert parse([], environ).settings.target == "a.py"


@each("name, expected", [("worker", "worker: .* workers"), ("zzz", "zzz: .* access_log or .* workers")])
def test_an_unknown_override_is_refused_naming_the_closest(name: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected):
        parse([], {}, **{name: 1})


@each("argv, target, unknown", [
    (["m.py"], "m.py", []), (["m.py", "--workers", "2"], "m.py", []), (["--workers", "2", "m.py"], "m.py", []),
    (["--access_log", "m.py"], "m.py", []), (["--access_log", "true", "m.py"], "m.py", []),
    (["m.py", "n.py", "--workers", "2", "o.py"], "m.py", ["n.py", "o.py"]),
    (["--nthread", "3", "m.py"], "m.py", ["--nthread", "3"]), (["--nthread=3", "m.py"], "m.py", ["--nthread=3"]),
    (["--verbose", "--workers", "2", "m.py"], "m.py", ["--verbose"]), (["-w", "4", "m.py"], "m.py", ["-w", "4"]),
    (["m.py", "--offset", "-1"], "m.py", ["--offset", "-1"]), (["m.py", "--verbose"], "m.py", ["--verbose"]),
    (["--work", "2"], None, ["--work", "2"]), (["--", "--odd.py", "x"], "--odd.py", ["x"]), ([], None, []),
])  # fmt: skip
def test_the_target_is_told_from_values_and_from_what_is_unknown(
    argv: list[str], target: str | None, unknown: list[str]
) -> None:
    parsed = parse(argv, {})
    assert (parsed.settings.target, parsed.unknown) == (target, unknown)


@each("argv", [["--http_port"], ["--http-port", "--workers", "2"], ["m.py", "--model_name"]])
def test_a_flag_without_its_value_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^--(http[_-]port|model_name): got no value, expected a "):
        parse(argv, {})


@each("text", ["n", "no", "f", "false", "off", "0", "False"])
def test_a_switch_is_turned_off_by(text: str) -> None:
    for argv in (["--access_log", text], [f"--access_log={text}"]):
        assert parse(argv, {"MPSERVE_ACCESS_LOG": "1"}).settings.access_log is False


@each("name", KSERVE_FLAGS_IGNORED)
@each("separator", ["_", "-"])
def test_a_flag_of_the_sdk_without_effect_is_accepted_with_its_value(name: str, separator: str) -> None:
    flag = "--" + name.replace("_", separator)
    assert parse([flag, "7", "m.py"], {}) == (Settings(target="m.py"), [name], [])


def test_arguments_of_the_sdk_without_effect_are_accepted_once() -> None:
    parsed = parse(["--max_threads=4"], {}, max_threads=8, protocol="v2")
    assert parsed.ignored == ["max_threads", "protocol"]


@each("argv, environ, overrides, port", [
    (["--ssl_certfile=tls.pem"], {}, {}, 8443), ([], {"KSERVE_TLS_CERT_FILE": "tls.pem"}, {}, 8443),
    ([], {}, {"ssl_certfile": "tls.pem"}, 8443), (["--ssl_certfile=tls.pem", "--http_port=8080"], {}, {}, 8080),
    (["--ssl_certfile=tls.pem"], {"MPSERVE_HTTP_PORT": "8080"}, {}, 8080),
    (["--ssl_certfile=tls.pem"], {}, {"http_port": 8080}, 8080), ([], {}, {}, 8080),
])  # fmt: skip
def test_tls_moves_the_port_only_when_none_was_given(
    argv: list[str], environ: dict[str, str], overrides: dict[str, Any], port: int
) -> None:
    assert parse(argv, environ, **overrides).settings.http_port == port


def test_the_parser_serves_as_a_parent_of_a_script_s_own() -> None:
    parser = argparse.ArgumentParser(parents=[argument_parser({"target", "model_dir"})])
    parser.add_argument("--model_dir", required=True)
    arguments, unknown = parser.parse_known_args(["--model_dir=/m", "--http-port", "9", "--access_log", "--nthread=2"])
    assert (arguments.model_dir, arguments.http_port, arguments.access_log) == ("/m", 9, True)
    assert (arguments.model_name, arguments.workers, arguments.event_loop) == ("model", 1, "auto")
    assert (arguments.predictor_host, arguments.timeout_keep_alive) == (None, 120)
    assert unknown == ["--nthread=2"]


def test_the_parser_refuses_a_bad_value_in_argparse_s_way(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        argument_parser().parse_args(["--max_body_size", "much"])
    assert "--max_body_size" in capsys.readouterr().err


def test_the_help_names_every_flag_variable_and_group() -> None:
    text = " ".join(argument_parser().format_help().split())
    for option in OPTIONS:
        assert f"{option.group}:" in text
        for name in (*option.spellings, *option.env):
            assert name in text
    for reason in KSERVE_FLAGS_IGNORED.values():
        assert reason in text


def test_the_document_of_options_is_up_to_date() -> None:
    remedy = "run python -m mpserve.config.command_line > docs/reference/options.md"
    assert (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8") == documentation(), remedy


def test_the_module_prints_the_document() -> None:
    command = [sys.executable, "-m", "mpserve.config.command_line"]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout == documentation()


def test_variables_of_mlserver_are_options_or_named() -> None:
    """As KServe's runtime for MLServer sets them."""
    environ = {
        "MLSERVER_HTTP_PORT": "8085", "MLSERVER_GRPC_PORT": "9000", "MLSERVER_MODEL_NAME": "iris",
        "MLSERVER_MODEL_URI": "/mnt/models", "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_HOST": "",
    }  # fmt: skip
    settings = Settings.from_environment(environ)
    assert (settings.http_port, settings.grpc_port, settings.model_name, settings.model_dir) == (
        8085, 9000, "iris", "/mnt/models",
    )  # fmt: skip
    assert unused_variables(environ) == ["MLSERVER_MODEL_IMPLEMENTATION"]
