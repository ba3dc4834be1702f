"""A repository of the hub is fetched by huggingface_hub, from a hub on loopback."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from mpserve.errors import ConfigurationError
from mpserve.serving.storage.fetch import path_of
from tests.storages import handling

pytestmark = pytest.mark.e2e

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
FILES = {"model.py": b"x = 1", "config/config.json": b"{}"}


def answer(handler: BaseHTTPRequestHandler) -> None:
    path = handler.path.partition("?")[0]
    revision = next((name for name, commit in COMMITS.items() if f"/{name}" in path or commit in path), "")
    commit = COMMITS.get(revision, "")
    if path.startswith(f"/api/models/org/iris/revision/{revision or '-'}"):
        siblings = [{"rfilename": name} for name in FILES]
        body = json.dumps({"id": "org/iris", "_id": "1", "sha": commit, "siblings": siblings}).encode()
    elif path.startswith("/api/models/org/iris/tree/"):
        body = json.dumps([
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in FILES.items()
        ]).encode()  # fmt: skip
    elif path.startswith("/org/iris/resolve/"):
        body = FILES[path.partition(f"{commit}/")[2] or path.partition(f"{revision}/")[2]]
    else:
        name = "RevisionNotFound" if path.startswith("/api/models/org/iris/") else "RepoNotFound"
        handler.send_response(404)
        handler.send_header("X-Error-Code", name)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
    handler.send_header("X-Repo-Commit", commit)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with handling(answer) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield


@pytest.mark.usefixtures("hub")
def test_a_repository_is_fetched_into_the_cache_of_the_hub_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Path(path_of("hf://org/iris", str(tmp_path / "ours")))
    assert newest.name == "iris"
    assert newest.resolve().name == COMMITS["main"]
    assert (newest.resolve().parents[2], (newest / "model.py").read_bytes()) == (tmp_path / "hf" / "hub", b"x = 1")
    for separator in "@:":
        assert Path(path_of(f"hf://org/iris{separator}v1", str(tmp_path / "ours"))).resolve().name == COMMITS["v1"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path_of("hf://org/iris", str(tmp_path / "ours")) == str(newest)
    assert Path(path_of("hf://org/iris", "/proc/none")).name == COMMITS["main"]
    with pytest.raises(ConfigurationError, match="hf://org/other: it is not in the local cache"):
        path_of("hf://org/other", str(tmp_path / "ours"))


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hf://org/other: there is no such repository"):
        path_of("hf://org/other", str(tmp_path))
    with pytest.raises(ConfigurationError, match="hf://org/iris@v9: there is no such revision"):
        path_of("hf://org/iris@v9", str(tmp_path))
