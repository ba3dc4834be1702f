"""Serves the digits example on two workers, sends it a real image under V1 and V2, stops it (`--keep`: at Ctrl-C).

Exits non-zero when the server dies or the answer is not the digit that the image shows.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

ROOT = Path(__file__).resolve().parent.parent
MODEL = Path("examples/digits_sklearn/digits.py")
REQUEST_V1, REQUEST_V2 = Path("examples/digits/request_v1.json"), Path("examples/digits/request_v2.json")
EXPECTED, SHADES = 7, " .:-=+*#%@"
# What a first run may need to import scikit-learn from a slow disk.
START_SECONDS, STOP_SECONDS = 180, 60


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what happened instead."""


def free_port(preferred: int) -> int:
    """Return `preferred` if nothing has it, else a port that the system picks, as for 0."""
    with socket.socket() as probe:
        # As the server does: an earlier run's connections in TIME_WAIT do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", preferred))
        except OSError:
            probe.bind(("", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str) -> None:
    """Return once readiness answers 200, showing a dot for each second of waiting."""
    for tenth in range(10 * START_SECONDS):
        if server.poll() is not None:
            raise DemoFailed(f"the server ended with code {server.returncode} before it was ready")
        try:
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5).close()
            return print(" ready", flush=True)
        except OSError:  # refused, reset, timed out, or 503: urllib's errors are OSErrors
            print("." if tenth % 10 == 0 else "", end="", flush=True)
            time.sleep(0.1)
    raise DemoFailed(f"the server was not ready within {START_SECONDS} s")


def ask(url: str, path: str, body: Path) -> Any:
    """Post the file and return the decoded answer, after printing it below the curl line that does the same."""
    print(f"\n$ curl -H 'Content-Type: application/json' {url}{path} -d @{body}")
    request = urllib.request.Request(url + path, (ROOT / body).read_bytes(), {"Content-Type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=30).read().decode()
    except HTTPError as error:
        raise DemoFailed(f"{path} answered {error.code}: {error.read().decode(errors='replace')}") from error
    print(answer, flush=True)
    return json.loads(answer)


def show(url: str) -> None:
    """Draw the image, ask for its digit under both protocols, compare."""
    rows = json.loads((ROOT / REQUEST_V1).read_bytes())["instances"][0]
    print("\n".join("  " + "".join(2 * SHADES[pixel * (len(SHADES) - 1) // 16] for pixel in row) for row in rows))
    v1 = ask(url, "/v1/models/digits:predict", REQUEST_V1)["predictions"][0]["digit"]
    outputs = ask(url, "/v2/models/digits/infer", REQUEST_V2)["outputs"]
    v2 = next(output["data"][0] for output in outputs if output["name"] == "digit")
    if (v1, v2) != (EXPECTED, EXPECTED):
        raise DemoFailed(f"the image shows a {EXPECTED}; V1 said {v1}, V2 said {v2}")


def run(log: IO[bytes], keep: bool) -> None:
    """Start the server, show it, and stop it whatever happened."""
    port = free_port(8080 if keep else 0)  # two demos at once would both find 8080 free
    serve = ["mpserve", "serve", str(MODEL), "--workers", "2", "--http_port", str(port)]
    print("$", *serve, end=" ", flush=True)
    # A session of its own: Ctrl-C reaches this script alone, which then stops the server as Kubernetes would.
    command = [sys.executable, "-m", *serve]
    server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(server, f"http://localhost:{port}")
        show(f"http://localhost:{port}")
        if keep:
            print("\nIt goes on serving until Ctrl-C.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
    finally:
        server.terminate()
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
    if server.wait():
        raise DemoFailed(f"the server ended with code {server.returncode}")


def main() -> int:
    """Run the demo; on a failure print the server's log and the reason."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryFile() as log:
        try:
            run(log, keep="--keep" in sys.argv[1:])
        except DemoFailed as failure:
            log.seek(0)
            print(log.read().decode(errors="replace"), f"\nThe demo failed: {failure}", sep="\n", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
