"""A real Prometheus for tests, which scrapes a server on this machine and is asked by its HTTP API."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.running import PATIENCE, eventually, free_port

MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]

needs_prometheus = pytest.mark.skipif(bool(MISSING), reason=f"not on PATH: {' and '.join(MISSING)}")

Labels = tuple[str, ...]


class Prometheus:
    """One server, with its labels ``job`` "mpserve" and ``instance`` "i"."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def ask(self, expression: str, *labels: str) -> dict[Labels, float]:
        """The result of an expression: each value by the values of these labels. An expression that is not valid fails."""
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer)
        return {
            tuple(sample["metric"].get(label, "") for label in labels): float(sample["value"][1])
            for sample in answer["data"]["result"]
        }

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/-/ready").status_code == 200 and self.ask("up", "instance") == {("i",): 1}
        return False


@contextlib.contextmanager
def scraping(port: int, folder: Path, *rules: Path) -> Iterator[Prometheus]:
    """A Prometheus with these rules that scrapes 127.0.0.1:``port`` each second."""
    target = {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": "i"}}
    config = folder / "prometheus.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": list(map(str, rules)),
                "scrape_configs": [{"job_name": "mpserve", "static_configs": [target]}],
            }
        )
    )
    own = free_port()
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{own}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{own}", timeout=PATIENCE, trust_env=False) as client:
            prometheus = Prometheus(client)
            eventually(prometheus.is_ready)
            yield prometheus
    finally:
        process.terminate()
        process.wait(PATIENCE)
