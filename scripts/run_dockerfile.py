"""Executes the Dockerfile's steps, in order, without a Docker engine; then starts the result, asks it and stops it.

Each stage gets an empty folder as its root file system, and a clean virtual environment in usr/local as its base image.
Absolute paths in ENV, COPY, WORKDIR and the start command are moved below that root; RUN steps run as they stand, and what is not
understood is an error. Not shown by this: the base image's Python and Debian, the isolation, being PID 1.

    scripts/run_dockerfile.py --build-arg EXTRAS=torch
"""

import argparse
import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "digits"
# Instructions that do nothing until the image is started; EXPOSE is a note for readers in Docker too.
KEPT = {"USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
HOST_PATH = "/usr/local/bin:/usr/bin:/bin"
# The machine's own before the one that runs this, which may live where the image's user cannot read.
PYTHON = shutil.which("python3", path=HOST_PATH) or sys.executable
# How this machine finds packages is no part of the image.
NETWORK = re.compile(r"PIP_\w+|SSL_CERT_\w+|(https?|no)_proxy", re.IGNORECASE)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield (INSTRUCTION, rest), with continued lines joined and comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        yield name.upper(), rest.strip()


def ignored(path: Path, patterns: list[str]) -> bool:
    """Tell whether .dockerignore leaves this path out: the last pattern that names it or a folder above it decides."""
    verdict = False
    for pattern in patterns:
        anywhere, name = "**/" in pattern, pattern.lstrip("!").removeprefix("**/")
        if any(fnmatch.fnmatchcase(part.name if anywhere else str(part), name) for part in (path, *path.parents)):
            verdict = not pattern.startswith("!")
    return verdict


def copy(source: Path, target: Path) -> None:
    """Copy a file to a name, or a folder's contents into a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


class Image:
    """What a build has made so far: the root folder, the environment, and what was said about starting it."""

    def __init__(self, scratch: Path, arguments: dict[str, str]) -> None:
        self.scratch = scratch
        self.arguments = arguments
        self.stage = ""
        self.root = scratch / "root"

    def build(self, dockerfile: Path) -> None:
        """Copy the build context, then execute each step."""
        patterns = re.findall(r"^[^#\s].*", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
        for path in filter(Path.is_file, ROOT.rglob("*")):
            if not ignored(path.relative_to(ROOT), patterns):
                copy(path, self.scratch / "context" / path.relative_to(ROOT))
        for name, rest in instructions(dockerfile.read_text()):
            print(f"--> {name} {rest}", flush=True)
            if name in KEPT:
                self.kept[name] = rest
            else:
                getattr(self, f"step_{name.lower()}", self.unsupported)(rest)

    def unsupported(self, rest: str) -> None:
        raise SystemExit("unsupported instruction")

    def inside(self, text: str) -> str:
        """Move the absolute paths of a value, a list with colons or a --flag=value below the root."""
        return re.sub(r"(^|:|^--[\w-]+=)(?=/(?!/))", lambda match: f"{match[1]}{self.root}", text)

    def start(self, command: list[str], **variables: str) -> "subprocess.Popen[bytes]":
        """Start a command as the container would: the image's environment, folder and user, nothing else."""
        uid, gid = map(int, self.kept["USER"].split(":")) if os.getuid() == 0 else (None, None)
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        environment = {**self.environment, **variables}
        who: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": None if uid is None else [gid]}
        return subprocess.Popen([program, *command[1:]], cwd=self.directory, env=environment, **who)

    def step_from(self, rest: str) -> None:
        if self.root.exists():
            # Away from its place: the final stage must not be able to lean on what it did not copy.
            self.root.rename(self.scratch / f"stage-{self.stage}")
        image, _, self.stage = re.split(r"(\s+AS\s+|$)", rest, maxsplit=1, flags=re.IGNORECASE)
        (self.root / "tmp").mkdir(parents=True)
        (self.root / "tmp").chmod(0o1777)
        base = self.root / "usr/local"
        print(f"    for {image} stands a clean virtual environment of {PYTHON}", flush=True)
        subprocess.run([PYTHON, "-m", "venv", base], check=True)
        self.environment = {"PATH": f"{base}/bin:{HOST_PATH}", "HOME": f"{self.root}/tmp", "LANG": "C.UTF-8"}
        self.directory = self.root
        self.kept = {"USER": "0:0"}

    def step_arg(self, rest: str) -> None:
        name, equals, default = rest.partition("=")
        if name in self.arguments or equals:
            self.environment[name] = self.arguments.get(name, default)

    def step_env(self, rest: str) -> None:
        for name, _, value in [pair.partition("=") for pair in shlex.split(rest)]:
            # Paths are moved before variables are replaced: the variables' values have been moved already.
            self.environment[name] = Template(self.inside(value)).substitute(self.environment)

    def step_workdir(self, rest: str) -> None:
        self.directory = Path(self.inside(rest))
        self.directory.mkdir(parents=True, exist_ok=True)

    def step_copy(self, rest: str) -> None:
        *sources, destination = rest.split()
        origin = self.scratch / "context"
        if sources[0].startswith("--from="):
            origin = self.scratch / f"stage-{sources.pop(0).removeprefix('--from=')}"
        if "--" in " ".join(sources) or "$" in rest:
            raise SystemExit("unsupported form")
        target = self.directory / self.inside(destination)
        for source in [origin / name.lstrip("/") for name in sources]:
            copy(source, target / source.name if source.is_file() and destination.endswith("/") else target)

    def step_run(self, rest: str) -> None:
        if rest.startswith(("--", "[")) or re.search(r"""(^|[\s"'=:])/""", rest):
            raise SystemExit("unsupported form: an option, a list or an absolute path")
        network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
        if code := self.start(["/bin/sh", "-c", rest], **network).wait():
            raise SystemExit(f"exit status {code}")


def fetch(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return bytes(response.read())


def serve(image: Image, request: Path, port: int) -> int:
    """Start ENTRYPOINT and CMD, wait until ready, run the health check, send the V1 request, stop with SIGTERM."""
    command = [image.inside(word) for name in ("ENTRYPOINT", "CMD") for word in json.loads(image.kept[name])]
    print("-->", *command, f"(as {image.kept['USER'] if os.getuid() == 0 else 'the user who runs this'})", flush=True)
    server = image.start(command, MPSERVE_HTTP_PORT=str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1800):  # three minutes
            if server.poll() is not None:
                raise SystemExit(f"the server ended with code {server.returncode} before it was ready")
            with contextlib.suppress(OSError):
                fetch(f"{url}/v2/health/ready")
                break
            time.sleep(0.1)
        check = image.kept["HEALTHCHECK"].partition("CMD ")[2]
        health = image.start(json.loads(check), MPSERVE_HTTP_PORT=str(port)).wait()
        model = json.loads(fetch(f"{url}/v1/models"))["models"][0]
        answer = fetch(f"{url}/v1/models/{model}:predict", request.read_bytes()).decode()
        print(f"--> HEALTHCHECK exits {health}; {model} answers {answer}", flush=True)
        server.terminate()
        code = server.wait(timeout=60)
    finally:
        server.kill()
    print(f"--> after SIGTERM the server exits {code}")
    return code or health


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--model_dir", type=Path, default=EXAMPLE, help="what a volume at /mnt/models would hold")
    parser.add_argument("--request", type=Path, default=EXAMPLE / "request_v1.json", help="the body of a V1 request")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        image = Image(Path(scratch), dict(pair.split("=", 1) for pair in options.build_arg))
        image.build(ROOT / "Dockerfile")
        copy(options.model_dir, image.root / "mnt/models")
        return serve(image, options.request, options.port)


if __name__ == "__main__":
    sys.exit(main())
