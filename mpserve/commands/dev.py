"""``mpserve dev``: serves a TARGET, and serves it anew when a file changes, in a new interpreter.

The old server answers until the new one is ready, and for as long as the new one cannot be loaded. This process holds the
listening socket and hands it to each server as gunicorn's USR2 does, so that no connection is lost between them. It runs no
code of the user.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mpserve.commands.arguments import refuse
from mpserve.config.command_line import parse
from mpserve.config.options import Option
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, NothingToServe
from mpserve.prefork.listener.listeners import UPGRADE, is_open
from mpserve.serving.repository import formats
from mpserve.serving.repository.import_target import no_file, script_of
from mpserve.telemetry.logging import configure

logger = logging.getLogger("mpserve")

OWN: tuple[Option, ...] = ()

TICK = 0.1
PATIENCE = 30.0  # seconds in which a server must end when it is told to
SUFFIXES = (".py", ".json", ".yaml", ".yml", ".toml")
SKIPPED = {"__pycache__", "node_modules", "site-packages"}


def run(arguments: Sequence[str]) -> int:
    """Serve until the end. Raises ConfigurationError for a mistake in the command line, or a port that is taken."""
    settings, _, unknown = parse(arguments)
    if script_of(settings.target) is None and not settings.ignore_unknown_flags:
        refuse(unknown)
    configure(settings)
    folders = _folders(settings)
    with _listener(settings) as listener, tempfile.NamedTemporaryFile(prefix="mpserve-dev-") as reason:
        Developer(Place(listener, Path(reason.name), arguments), Watch(folders)).run()
    return 0


def _folders(settings: Settings) -> list[Path]:
    """The folders that are watched."""
    target = (settings.target or "").partition(":")[0]
    if target.endswith(".py") and not Path(target).is_file():
        raise ConfigurationError(no_file(Path(target)))
    places = (
        [Path(target).parent if target.endswith(".py") or Path(target).is_file() else Path(target)] if target else []
    )
    places += [Path(settings.model_dir)] if settings.model_dir else []
    if not places:
        raise NothingToServe("dev")
    return [place if place.is_dir() else Path() for place in places]


def _listener(settings: Settings) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.http_port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {settings.host} port {settings.http_port} (--host, --http_port): {error.strerror}"
        ) from None
    return listener


class Watch:
    """Notices changed files of folders: code, settings and model files, as they may be on any file system."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._endings = (*SUFFIXES, *formats.endings())
        self._seen = dict(self._files())
        self._next = 0.0

    def changed(self) -> list[str]:
        """The files that were written, made or removed since the last time; looks more rarely if a look takes long."""
        begin = time.monotonic()
        if begin < self._next:
            return []
        files = dict(self._files())
        differing = sorted({path for path, _ in files.items() ^ self._seen.items()})
        self._seen = files
        self._next = time.monotonic() + 10 * (time.monotonic() - begin)
        return differing

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for folder in self._folders:
            for place, inner, names in os.walk(folder):
                inner[:] = [name for name in inner if not (name.startswith(".") or name in SKIPPED)]
                if "pyvenv.cfg" in names:
                    inner.clear()
                for name in names:
                    if name.endswith(self._endings):
                        path = os.path.join(place, name)  # noqa: PTH118
                        with suppress(OSError):
                            status = os.stat(path)  # noqa: PTH116
                            yield path, (status.st_mtime_ns, status.st_size)


class Place(NamedTuple):
    """What the servers share: the listening socket, the file to which one writes why it ends, and the words of ``serve``."""

    listener: socket.socket
    reason: Path
    arguments: Sequence[str]


class Server:
    """A server in a new interpreter, which stands by until it is told to load the models."""

    def __init__(self, place: Place) -> None:
        self.opened, told = os.pipe()
        os.set_blocking(self.opened, False)
        waits, self._go = os.pipe()
        listener = place.listener.fileno()
        handed = {
            UPGRADE: str(os.getpid()), "GUNICORN_FD": str(listener), "MPSERVE_TERMINATION_LOG": str(place.reason),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mpserve.commands.watched",
                str(waits),
                str(told),
                str(place.reason),
                *place.arguments,
            ],
            env={**os.environ, **handed},
            pass_fds=(listener, told, waits),
        )
        os.close(told)
        os.close(waits)

    def load(self) -> None:
        """Let it load the models and serve them. Called once."""
        with suppress(BrokenPipeError):  # it has ended, which ``has_ended`` tells
            os.write(self._go, b".")

    def is_open(self) -> bool:
        try:
            return os.read(self.opened, 1) == b"."
        except BlockingIOError:
            return False

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def tell_to_end(self) -> None:
        if not self.has_ended():
            self.process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.opened)
        os.close(self._go)


class Developer:
    """The servers: one that answers, one that loads, one that stands by, and those that finish their requests."""

    def __init__(self, place: Place, watch: Watch) -> None:
        self._place = place
        self._watch = watch
        self._standing_by = Server(place)
        self._serving: Server | None = None
        self._loading: Server | None = None
        self._leaving: list[Server] = []
        self._stopping = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self._begin()
        while not self._stopping:
            select.select([] if self._loading is None else [self._loading.opened], [], [], TICK)
            if files := self._watch.changed():
                more = f" and {len(files) - 1} more" if len(files) > 1 else ""
                logger.info("%s%s changed: loading anew", files[0], more)
                self._begin()
            self._look()
        servers = (self._standing_by, self._loading, self._serving, *self._leaving)
        remaining = [server for server in servers if server is not None]
        for server in remaining:
            server.tell_to_end()
        for server in remaining:
            server.wait()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True

    def _begin(self) -> None:
        self._look()  # a server that has just opened is not loading any more
        if self._loading is not None:
            self._let_go(self._loading)
        self._place.reason.write_text("")
        self._loading, self._standing_by = self._standing_by, Server(self._place)
        self._loading.load()

    def _let_go(self, server: Server) -> None:
        server.tell_to_end()
        self._leaving.append(server)

    def _look(self) -> None:
        if self._loading is not None and self._loading.is_open():
            if self._serving is not None:
                self._let_go(self._serving)
            self._serving, self._loading = self._loading, None
        elif self._loading is not None and self._loading.has_ended():
            meanwhile = "nothing is served" if self._serving is None else "the old model serves on"
            logger.error("the model could not be loaded; %s until a file changes", meanwhile)
            self._loading.wait()
            self._loading = None
            self._refuse_if_nobody_serves()
        if self._serving is not None and self._serving.has_ended():
            logger.error("the server has ended; nothing is served until a file changes")
            self._serving.wait()
            self._serving = None
            self._refuse_if_nobody_serves()
        for server in [server for server in self._leaving if server.has_ended()]:
            server.wait()
            self._leaving.remove(server)

    def _refuse_if_nobody_serves(self) -> None:
        """Refuse connections instead of letting them wait. The next server listens again."""
        # A shutdown of a socket that does not listen would end the connections of its later clients.
        listener = self._place.listener
        if self._serving is None and self._loading is None and is_open(listener):
            listener.shutdown(socket.SHUT_RD)
