"""The site of the documents: built without a broken link, and looked at in a browser that may ask no other host."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.build_docs import PAGES, LinkError, pages, relinked
from tests.browser import Browser, browsing, needs_browser
from tests.documents import DOCS, ROOT
from tests.running import eventually, free_port, running

pytest.importorskip("zensical")

TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
ASKED = "return performance.getEntriesByType('resource').map(entry => entry.name)"
SCHEME = "return document.body.dataset.mdColorScheme"
DIAGRAMS = "return document.querySelectorAll('div.mermaid').length"


@pytest.fixture(scope="module")
def site() -> Path:
    build = [sys.executable, "scripts/build_docs.py"]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return PAGES.with_name("site")


@pytest.fixture(scope="module")
def url(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(site), str(port)]
    with running(command, tmp_path_factory.mktemp("server"), port) as server:
        eventually(lambda: not server.refuses())
        yield server.url


@needs_browser
def test_pages_fit_every_screen_and_ask_no_other_host(url: str, tmp_path: Path) -> None:
    with browsing(tmp_path) as browser:
        for page in ("index", "tutorial", "architecture"):
            for width, dark in ((390, False), (1280, True)):
                browser.look(width, 844, dark)
                browser.open(f"{url}/{page}.html")
                assert browser.run(SCHEME) == ("slate" if dark else "default")
                if page == "architecture":
                    eventually(lambda: browser.run(DIAGRAMS))
                browser.picture(tmp_path / f"{page}-{width}.png")
                assert browser.run(TOO_WIDE) <= 0, f"{page} at {width}"
                assert {name for name in browser.run(ASKED) if not name.startswith(url)} == set(), page
        assert browser.complaints() == []
        find(browser, "preload", "reference/models.html")


TYPE = "document.activeElement.value = %r; document.activeElement.dispatchEvent(new Event('input', {bubbles: true}))"


def find(browser: Browser, word: str, page: str) -> None:
    """Search for a word, and find a page."""
    browser.look(1280, 844, dark=False)
    browser.click("//button[contains(@class, 'md-search__button')]")
    browser.run(TYPE % word)
    browser.find(f"//a[contains(@href, {page!r})]")


def test_the_reference_has_the_docstrings(site: Path) -> None:
    assert "Serves models in this process" in (site / "reference" / "api.html").read_text()


def test_a_link_that_leads_nowhere_fails_the_build() -> None:
    known = pages()
    with pytest.raises(LinkError, match=r"docs/reference/models\.md: there is no file or folder no-such\.md"):
        relinked("See [this](no-such.md).", DOCS / "reference" / "models.md", known)
