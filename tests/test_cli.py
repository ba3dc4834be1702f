"""The `mpserve` command: what somebody reads who makes a mistake for the first time, in one sentence, and the exit status."""

import os
import pty
import re
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from mpserve.cli import COMMANDS
from mpserve.config.options import options_of
from mpserve.config.settings import Settings
from mpserve.version import VERSION
from tests.documents import ROOT
from tests.running import serving

pytestmark = pytest.mark.e2e

COMMAND = (sys.executable, "-m", "mpserve")
PATHS = {"PATH": "/usr/bin", "PYTHONPATH": str(ROOT)}
ONE = "from mpserve import Model\n\nclass One(Model):\n    name = 'one'\n"


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`mpserve` to its end, in a folder, with no way to listen anywhere else than on this machine."""
    (folder / "termination").touch()
    given = {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_HTTP_PORT": "0", "MPSERVE_TERMINATION_LOG": "termination"}
    env = {**PATHS, **given, **variables}
    command = [*COMMAND, *arguments]
    return subprocess.run(command, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def message(ended: subprocess.CompletedProcess[str]) -> str:
    """The only line, without what a log line begins with."""
    [line] = [line for line in ended.stderr.splitlines() if "] mpserve: loading " not in line]
    return line.partition("] mpserve: ")[2] or line


@pytest.mark.parametrize(("arguments", "mistake"), [
    ((), "a command is missing"), (("serv", "m.py"), "there is no command 'serv'; did you mean serve?"),
    (("m.py",), "there is no command 'm.py'; to serve it: mpserve serve m.py"),
    (("launch",), "there is no command 'launch'"),
])  # fmt: skip
def test_without_a_command_that_it_knows_it_lists_the_commands(
    tmp_path: Path, arguments: tuple[str, ...], mistake: str
) -> None:
    ended = run(tmp_path, *arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    said, _, rest = ended.stderr.partition("\n\n")
    assert (said, rest) == (f"mpserve: {mistake}", run(tmp_path, "--help").stdout)


def test_help_lists_the_commands_each_of_which_has_a_help(tmp_path: Path) -> None:
    ended = run(tmp_path, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) < 24
    for name, summary in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("completion", "version")])
def test_the_help_of_a_command_fits_a_screen_and_help_all_has_every_option(tmp_path: Path, command: str) -> None:
    short = run(tmp_path, command, "--help")
    whole = run(tmp_path, command, "m.py", "--help-all")
    for ended in (short, whole):
        assert (ended.returncode, ended.stderr) == (0, "")
        assert max(map(len, ended.stdout.splitlines())) <= 100
        assert "\033" not in ended.stdout, "no terminal, no colour"
        assert ended.stdout.startswith(f"Usage: mpserve {command} ")
    assert len(short.stdout.splitlines()) <= 50
    assert f"mpserve {command} --help-all" in short.stdout
    text = " ".join(whole.stdout.split())
    for option in options_of(Settings):
        assert option.flag is None or {option.flag, option.env[0]} <= set(re.findall(r"[\w-]+", text))
    if command == "serve":
        assert "--workers N" in short.stdout
        assert "1GB [128MiB] (env: MPSERVE_MAX_BODY_SIZE" in text
        assert "--http_port N Port; 8443 with TLS [8080] (env: MPSERVE_HTTP_PORT, MLSERVER_HTTP_PORT)" in text


def test_help_of_a_command_may_be_asked_in_two_ways(tmp_path: Path) -> None:
    assert run(tmp_path, "help", "dev").stdout == run(tmp_path, "dev", "--help").stdout


def test_a_file_without_a_command_is_told_the_command(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").touch()
    first, *_ = run(tmp_path, "m.joblib").stderr.splitlines()
    assert first == "mpserve: there is no command 'm.joblib'; to serve it: mpserve serve m.joblib"


def test_each_command_is_in_the_document_and_so_are_its_own_options() -> None:
    document = (ROOT / "docs" / "reference" / "command.md").read_text()
    for command in COMMANDS:
        assert re.search(rf"^\| `mpserve {command}[ `]", document, re.MULTILINE), command
        for option in import_module(f"mpserve.commands.{command}").OWN if command != "version" else ():
            assert f"`{option.flag}`" in document, option


def test_help_is_in_colour_on_a_terminal_unless_it_is_told_not_to_be() -> None:
    def shown(**variables: str) -> bytes:
        leader, follower = pty.openpty()
        env = {**PATHS, "TERM": "xterm", **variables}
        subprocess.run([*COMMAND, "--help"], check=True, stdout=follower, env=env, timeout=60)
        os.close(follower)
        text = os.read(leader, 100_000)
        os.close(leader)
        return text

    assert b"\033[1m" in shown()
    assert b"\033" not in shown(NO_COLOR="1")
    assert b"\033" not in shown(TERM="dumb")


@pytest.mark.parametrize("spelling", ["version", "--version", "-V"])
def test_version(tmp_path: Path, spelling: str) -> None:
    assert run(tmp_path, spelling).stdout == f"mpserve {VERSION}\n"


UNKNOWN = {
    "--workres=2": "there is no flag --workres; did you mean --workers?",
    "--port 80": "there is no flag --port; did you mean --http_port?",
    "--limit-max-requests 80": "there is no flag --limit-max-requests; did you mean --max_requests?",
    "-w 4": "there is no flag -w; did you mean --workers?",
    "--reload": "there is no flag --reload; did you mean mpserve dev TARGET?",
    "--certfile=a": "there is no flag --certfile; did you mean --ssl_certfile?",
    "--zzz": "there is no flag --zzz;",
}


@pytest.mark.parametrize(("words", "said"), UNKNOWN.items(), ids=UNKNOWN)
def test_an_unknown_flag_is_an_error_that_tells_the_flag_that_is_meant(tmp_path: Path, words: str, said: str) -> None:
    for arguments in (("m.py", *words.split()), (*words.split(), "m.py")):
        ended = run(tmp_path, "serve", *arguments)
        assert ended.returncode == 2
        assert ended.stderr == f"mpserve: {said} mpserve serve --help-all lists the flags\n"


def test_a_second_target_is_an_error(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "a.py", "b.py")
    assert (ended.returncode, ended.stderr) == (2, "mpserve: expected one TARGET, got another word: b.py\n")


def test_a_script_reads_flags_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\nfrom mpserve import ModelServer\nif __name__ == '__main__':\n"
        "    print(sys.argv[1:])\n    sys.exit(7)\n    ModelServer().start([])\n"
    )
    ended = run(tmp_path, "serve", "script.py", "--own=1", "--workres", "2")
    assert (ended.returncode, ended.stdout) == (7, "['--own=1', '--workres', '2']\n")


def test_a_number_of_workers_that_gunicorn_would_fail_at_is_told(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "model.py", WEB_CONCURRENCY="auto")
    words = "workers (--workers, MPSERVE_WORKERS, WEB_CONCURRENCY): got 'auto', expected a whole number, at least 1"
    assert (ended.returncode, ended.stderr) == (2, f"mpserve: {words}\n")


def test_a_wrong_value_is_told_with_what_was_expected(tmp_path: Path) -> None:
    ended = run(tmp_path, "serve", "model.py", "--http_port", "eighty")
    assert ended.returncode == 2
    words = "http_port (--http_port, MPSERVE_HTTP_PORT, MLSERVER_HTTP_PORT): got 'eighty', expected a whole number"
    assert message(ended).startswith(f"mpserve: {words}")


FILES = {
    "no target": (None, (), "nothing to serve: name a target (mpserve serve model.py:Class) or a --model_dir"),
    "no such file": (None, ("modle.py",), "there is no file modle.py"),
    "two models": (f"{ONE}class Two(Model): ...\n", ("model.py",),
        "model.py holds 2 models; name one: model.py:One, model.py:Two"),
    "a script imported for its class": (
        f"{ONE}from mpserve import ModelServer\nModelServer().start([One()])\n", ("model.py:One",),
        "this file starts a server while it is imported to find a model in it: put ModelServer(...).start([...]) "
        'under `if __name__ == "__main__":`, or run the file as a script',
    ),
}  # fmt: skip


@pytest.mark.parametrize(("source", "arguments", "words"), FILES.values(), ids=FILES.keys())
def test_a_target_that_cannot_be_served_is_told_in_one_sentence(
    tmp_path: Path, source: str | None, arguments: tuple[str, ...], words: str
) -> None:
    if source is not None:
        (tmp_path / "model.py").write_text(source)
    ended = run(tmp_path, "serve", *arguments)
    assert ended.returncode == 2
    assert message(ended) == words
    assert (tmp_path / "termination").read_text() == words


BROKEN = {
    "exception at import": ("1 / 0\n", "the import of model.py failed: ZeroDivisionError: division by zero"),
    "preload": (f"{ONE}    def preload(self):\n        1 / 0\n",
        "preload() of model one failed: ZeroDivisionError: division by zero"),
    "exit at import": ("import sys\nsys.exit(0)\n", "the import of model.py failed: SystemExit: 0"),
    "exit in a constructor": (f"{ONE}    def __init__(self):\n        raise SystemExit\n",
        "the model's constructor failed: SystemExit: "),
    "exit in preload": (f"{ONE}    def preload(self):\n        raise SystemExit(0)\n",
        "preload() of model one failed: SystemExit: 0"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_an_exception_of_the_users_code_is_told_with_its_traceback_and_then_one_sentence(
    tmp_path: Path, source: str, words: str
) -> None:
    (tmp_path / "model.py").write_text(source)
    ended = run(tmp_path, "serve", "model.py")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith(words)
    assert ended.stderr.count("Traceback (most recent call last)") == 1
    _, _, frames = ended.stderr.partition("Traceback (most recent call last):\n")
    assert re.match(rf'  File ".*model.py", line {len(source.splitlines())}', frames), "the user's code comes first"
    assert "mpserve/" not in frames.rpartition("\n2")[0], "the server's code does not come at all"
    assert (tmp_path / "termination").read_text() == words


def test_an_exception_of_a_script_is_pythons_own_traceback(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("from mpserve import ModelServer\n1 / 0\nModelServer().start([])\n")
    ended = run(tmp_path, "serve", "script.py")
    assert ended.returncode == 1
    first, frame, *_, last = ended.stderr.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", "ZeroDivisionError: division by zero")
    assert frame.endswith('script.py", line 2, in <module>')
    assert "mpserve/" not in ended.stderr


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    host = "::1"
    (tmp_path / "model.py").write_text("open('imported', 'w')\n" + ONE)
    with socket.create_server((host, 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        ended = run(tmp_path, "serve", "model.py", f"--http_port={port}", f"--host=[{host}]")
    assert ended.returncode == 1
    words = f"cannot listen on {host} port {port} (--host, --http_port): Address already in use"
    assert message(ended) == words
    assert (tmp_path / "termination").read_text() == words
    assert not (tmp_path / "imported").exists()


def test_packages_too_old_for_grpc_are_told(tmp_path: Path) -> None:
    """As grpc's generated code does when protobuf is too old: its import raises."""
    (tmp_path / "model.py").write_text(ONE)
    (tmp_path / "grpc_reflection").mkdir()
    (tmp_path / "grpc_reflection" / "__init__.py").write_text(
        "raise TypeError('Descriptors cannot be created directly')\n"
    )
    ended = run(tmp_path, "serve", "model.py", "--http_port=0", "--grpc_port=0")
    assert (ended.returncode, "Traceback" in ended.stderr) == (3, False), ended.stderr
    assert re.search(
        r"gRPC cannot be imported, with protobuf \S+, grpcio .* installed: TypeError: Descriptors cannot be created directly; "
        r"pip install --upgrade 'mpserve\[grpc\]'. To serve no gRPC: --enable_grpc=no",
        (tmp_path / "termination").read_text(),
    )


def test_a_service_of_kubernetes_that_is_named_like_an_option_is_no_option(tmp_path: Path) -> None:
    link = "tcp://10.43.7.9:80"
    with serving(tmp_path, ONE, env={"MPSERVE_HTTP_PORT": link, "MPSERVE_GRPC_PORT": link}) as server:
        server.wait_ready()
        for name in ("MPSERVE_HTTP_PORT", "MPSERVE_GRPC_PORT"):
            assert server.log.count(f"{name}={link} is ignored: Kubernetes has set it for a Service") == 1


def test_flags_of_the_sdk_are_taken_and_in_a_container_unknown_ones_are_reported(tmp_path: Path) -> None:
    flags = (
        "--max_threads=4", "--enable_docs_url", "true", "--timeout-keep-alive", "75", "--event_loop=asyncio",
        "--my_own=1", "--another", "value", "--workres=2",
    )  # fmt: skip
    with serving(tmp_path, ONE, *flags, env={"MPSERVE_IGNORE_UNKNOWN_FLAGS": "true"}) as server:
        server.wait_ready()
        assert server.client.get("/v2/models").json() == {"models": ["one"]}
        assert "--max_threads has no effect: gRPC runs on the event loop" in server.log
        assert server.client.get("/docs").status_code == 200
        assert (
            "unknown arguments ignored: --my_own=1 --another value --workres=2; did you mean --workers?" in server.log
        )
        assert "timeout" not in server.log
