"""The pages for people: who gets which, what they may load, and who sees what."""

import asyncio
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx

from mpserve.http.app import build_app
from tests.asgi import core_of, serving
from tests.cases import each
from tests.http.management.test_openapi import MODELS
from tests.models import faulty

PAGES = Path(str(files("mpserve"))) / "http" / "pages"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def answers(*paths: str, accept: str = "*/*", address: str = "127.0.0.1", **options: Any) -> list[httpx.Response]:
    """The answers to requests from this address, sent at once."""

    async def main() -> list[httpx.Response]:
        app = build_app(core_of(*MODELS[:2], **options))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://localhost")
        async with app.router.lifespan_context(app), client:
            return await asyncio.gather(*(client.get(path, headers={"accept": accept}) for path in paths))

    return asyncio.run(main())


@each("accept, options, is_page", [
    (BROWSER, {}, True), ("*/*", {}, False), ("application/json", {}, False), ("", {}, False),
    (BROWSER, {"enable_status_page": False}, False),
])  # fmt: skip
def test_a_browser_gets_the_page_and_others_the_answer_of_kserve(
    accept: str, options: dict[str, Any], is_page: bool
) -> None:
    (answer,) = answers("/", accept=accept, **options)
    assert answer.status_code == 200
    if is_page:
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    else:
        assert answer.json() == {"status": "alive"}


def test_without_the_option_nothing_of_the_page_is_there() -> None:
    for answer in answers("/status", "/pages/status.js", accept=BROWSER, enable_status_page=False):
        assert answer.status_code == 404


@each("path", ["/pages/uplot.LICENSE", "/pages/status.html", "/pages/", "/pages/../app.py", "/pages/%2e%2e%2fapp.py"])
def test_only_styles_and_scripts_are_files(path: str) -> None:
    assert answers(path)[0].status_code == 404


@each("path", ["/", "/docs"])
def test_a_page_loads_files_of_this_server_only(path: str) -> None:
    (page,) = answers(path, accept=BROWSER, enable_docs_url=True)
    assert page.headers["content-security-policy"].startswith("default-src 'none'; connect-src 'self'; ")
    assert "unsafe" not in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|stylesheet" href)="([^"]*)"', page.text)
    assert len(loaded) >= 3
    for file in answers(*(f"/{name}" for name in loaded)):
        assert file.status_code == 200
        assert file.headers["content-type"].startswith(("text/css", "text/javascript"))


@each("file", sorted(path.name for path in PAGES.iterdir() if not path.name.startswith("uplot")))
def test_our_own_files_name_no_other_server(file: str) -> None:
    assert not re.search(r"https?:|[\"'(]//|@import", (PAGES / file).read_text())


def test_who_asks_at_once_gets_one_look() -> None:
    one, other = answers("/status", "/status")
    assert one.json() == other.json()
    assert one.headers["cache-control"] == "no-store"


@each("options, address, manages", [
    ({}, "127.0.0.1", True), ({}, "192.0.2.1", False), ({"management": "off"}, "127.0.0.1", False),
    ({"management": "anywhere"}, "192.0.2.1", True),
])  # fmt: skip
def test_the_page_knows_who_may_manage(options: dict[str, Any], address: str, manages: bool) -> None:
    (answer,) = answers("/status", address=address, **options)
    told = answer.json()
    assert told["manages"] == manages
    assert [model["name"] for model in told["models"]] == ["vector", "pair"]
    assert [worker["state"] for worker in told["workers"]] == ["ready"]


def test_under_another_server_a_stream_is_one_event() -> None:
    """Such a server waits for the end of every answer when it stops; the page asks again."""
    (answer,) = answers("/status", accept="text/event-stream")
    assert answer.headers["content-type"] == "text/event-stream"
    assert re.fullmatch(r"retry: \d+\ndata: \{.*\}\n\n", answer.text)


async def test_a_worker_that_cannot_answer_for_a_model_says_so() -> None:
    async with serving(faulty.Echo()) as client:
        instance = client._transport.app.state.core.models["echo"].newest  # type: ignore[attr-defined]
        instance.model.ready = False
        told = (await client.get("/status")).json()
    assert told["workers"][0]["trouble"] == "it cannot answer for echo"
    assert told["models"][0]["workers"] == 0
    assert not told["ready"]
