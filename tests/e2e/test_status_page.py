"""``/`` in a browser that can reach nothing but the server: live figures of all workers, and what ails them."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.browser import Browser, browsing, check_on_every_screen, needs_browser
from tests.running import PATIENCE, Server, eventually, serving

MODELS = """
import os
from mpserve import Model, Tensor, TensorModel

class Iris(TensorModel):
    name = "iris"
    inputs = (Tensor("features", "FP32", (-1, 4)),)
    outputs = (Tensor("species", "INT64", (-1,)),)
    max_batch_size = 8
    def predict(self, features):
        return features.argmax(axis=1)

class Fragile(Model):
    name = "fragile/one"
    def predict(self, payload, headers=None):
        raise ValueError("no entry for <b>")

models = [Iris(), Fragile()]
"""

IRIS = "//tr[th/span[text()='iris']]"
NONE = "\N{EN DASH}"
STREAM = {"accept": "text/event-stream"}


def events(response: httpx.Response) -> Iterator[str]:
    return (line for line in response.iter_lines() if line.startswith("data: "))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), MODELS, "--workers=2", target="model.py:models") as running:
        yield running.wait_ready(workers=2)


@pytest.fixture
def browser(tmp_path: Path, server: Server) -> Iterator[Browser]:
    with browsing(tmp_path) as browser:
        browser.look(1280, 844, dark=False)
        browser.open(server.url)
        browser.find("//tbody[@id='models']/tr")
        yield browser


@contextmanager
def load(server: Server) -> Iterator[None]:
    """Requests, some of which fail, until the block is left; each on a connection of its own, so that every worker has some."""
    ended = Event()

    def ask() -> None:
        while not ended.wait(0.02):
            httpx.post(f"{server.url}/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]}, verify=False)
            httpx.post(f"{server.url}/v1/models/fragile%2Fone:predict", json={"instances": [1]}, verify=False)

    thread = Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def cell(label: str, row: str = IRIS) -> str:
    return f"{row}/td[@data-label='{label}']"


@needs_browser
def test_figures_change_under_load_on_every_screen(server: Server, browser: Browser, tmp_path: Path) -> None:
    assert browser.text("//dd[@id='rate']") in (NONE, "0")
    assert browser.text(cell("State")) == "2 of 2 workers"
    with load(server):
        eventually(lambda: float(browser.text("//dd[@id='rate']").replace(NONE, "0")) > 0)
        eventually(lambda: browser.text(cell("Batch")) == "1.0")
        eventually(lambda: browser.text(cell("p99")).endswith("ms"))
        failing = "//tr[th/span[text()='fragile/one']]"
        eventually(lambda: int(browser.text(cell("Errors", failing)).replace(",", "")) > 1)
        assert browser.text(cell("Errors")) == "0"
        eventually(lambda: "no entry for <b>" in browser.text("//ol[@id='errors']"))
        assert browser.text("//ul[@id='troubles']") == "Model fragile/one: no request of the last minute succeeded."
        check_on_every_screen(browser, tmp_path)
    eventually(lambda: browser.text("//dd[@id='rate']") == "0")
    loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert {url for url in loaded if not url.startswith(server.url)} == set()


@needs_browser
def test_the_example_of_a_model_is_tried(browser: Browser) -> None:
    browser.click("//button[@aria-label='Try iris']")
    eventually(lambda: browser.run("return document.activeElement.textContent") == "Try iris")
    browser.click("//button[text()='Send']")
    assert browser.text("//section[@id='trial']//p[@class='success']") == "200 OK"
    assert '"species"' in browser.text("//section[@id='trial']//pre")


@needs_browser
def test_who_may_manage_unloads_and_loads(server: Server, browser: Browser) -> None:
    browser.click("//button[@aria-label='Unload iris']")
    browser.accept()
    eventually(lambda: server.client.get("/v2/models/iris").status_code == 404)
    browser.click("//button[@aria-label='Load iris']")
    eventually(lambda: browser.text(cell("State")) == "2 of 2 workers")


@needs_browser
def test_a_worker_that_is_ill_or_was_replaced_is_named(server: Server, browser: Browser, tmp_path: Path) -> None:
    """Here the page is answered by the other worker, or asks it after some seconds."""
    first, second = (worker["pid"] for worker in server.client.get("/status").json()["workers"])
    os.kill(second, signal.SIGSTOP)
    try:
        eventually(
            lambda: browser.text("//tr[th[contains(., 'Worker 1')]]/td[@data-label='State']").startswith("Failing")
        )
        assert browser.text("//ul[@id='troubles']").startswith("Worker 1: its event loop has not run")
        check_on_every_screen(browser, tmp_path)
    finally:
        os.kill(second, signal.SIGCONT)
    eventually(lambda: browser.text("//p[@id='state']") == "Ready")
    os.kill(first, signal.SIGKILL)
    eventually(lambda: browser.text("//ul[@id='troubles']") == "Worker 0 was replaced: it was killed, or it crashed.")
    eventually(lambda: f"pid:{first}" in browser.text("//ol[@id='errors']"))
    eventually(lambda: browser.text(cell("Restarts", "//tr[th[contains(., 'Worker 0')]]")).startswith("1"))


@needs_browser
def test_the_page_asks_for_a_key_and_sends_it_with_all_that_it_asks(tmp_path: Path) -> None:
    key = "alice-0123456789abcdef"
    (tmp_path / "keys").write_text(f"alice {key}\n")
    flags = ("--api_keys_file=keys", "--managers=alice")
    with serving(tmp_path, MODELS, *flags, target="model.py:models") as server, browsing(tmp_path) as browser:
        server.wait_ready()
        browser.open(server.url)
        browser.type("//input[@id='key-field']", "eve-0123456789abcdef")
        browser.click("//form[@id='key']/button")
        eventually(lambda: browser.text("//p[@id='key-refused']") == "The server does not know this key.")
        assert not browser.run("return document.querySelector('main').checkVisibility()")
        browser.complaints()  # of the two answers with 401
        browser.type("//input[@id='key-field']", key)
        browser.click("//form[@id='key']/button")
        eventually(lambda: browser.text(cell("State")) == "1 of 1 workers")
        check_on_every_screen(browser, tmp_path)
        browser.click("//button[@aria-label='Try iris']")
        browser.click("//button[text()='Send']")
        assert browser.text("//section[@id='trial']//p[@class='success']") == "200 OK"
        eventually(lambda: browser.text("//dd[@id='rate']") not in (NONE, "0"))  # so its events go on
        browser.click("//button[@aria-label='Unload iris']")
        browser.accept()
        eventually(lambda: browser.text(cell("State")) == "Not loaded")
        kept = browser.run("return [document.cookie, Object.keys(localStorage), Object.keys(sessionStorage)].join()")
        assert (kept.strip(","), browser.run("return location.href")) == ("", f"{server.url}/")
        browser.open(server.url)
        eventually(lambda: browser.text("//p[@id='state']") == "Key needed")


def test_any_worker_tells_the_figures_of_all(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS, "--workers=2", target="model.py:models") as server:
        server.wait_ready(workers=2)
        for _ in range(20):
            assert httpx.post(f"{server.url}/v1/models/iris:predict", json={"instances": [[1, 2, 3, 4]]}, verify=False)

        def told() -> list[int]:
            looks = [httpx.get(f"{server.url}/status", verify=False).json() for _ in range(10)]
            return [look["models"][0]["statistics"][0]["answered"] for look in looks]

        eventually(lambda: told() == [20] * 10)


def test_workers_that_a_hup_has_replaced_are_not_missed(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS, "--workers=2", target="model.py:models") as server:
        before = set(server.wait_ready(workers=2).workers())
        server.signal(signal.SIGHUP)
        eventually(lambda: len(server.workers()) == 2 and not before & set(server.workers()))
        server.wait_ready(workers=2)
        told = httpx.get(f"{server.url}/status", verify=False).json()
        assert [(worker["state"], worker["trouble"], worker["restarts"]) for worker in told["workers"]] == [
            ("ready", "", 0)
        ] * 2
        httpx.post(f"{server.url}/v1/models/fragile%2Fone:predict", json={"instances": [1]}, verify=False)

        def errors() -> str:  # logging was configured anew
            return str(httpx.get(f"{server.url}/status", verify=False).json()["errors"])

        eventually(lambda: "no entry for <b>" in errors())


def test_a_stream_ends_at_once_when_its_worker_ends(tmp_path: Path) -> None:
    """``serving`` fails if a stop takes long; the streams are open when it begins."""
    with (
        serving(tmp_path, MODELS, "--workers=2", target="model.py:models") as server,
        httpx.Client(verify=False) as client,
    ):
        server.wait_ready(workers=2)
        with client.stream("GET", f"{server.url}/status", headers=STREAM, timeout=PATIENCE) as response:
            told = events(response)
            assert next(told) != next(told)
            begin = time.monotonic()
            server.signal(signal.SIGTERM)
            assert len(list(told)) <= 1  # and the answer is whole, or httpx would raise
            server.stop()
            assert time.monotonic() - begin < 2


def test_more_pages_than_a_worker_has_streams_get_one_event_each(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS, "--workers=1", target="model.py:models") as server:
        server.wait_ready(workers=1)
        limits = httpx.Limits(max_connections=None)
        with httpx.Client(verify=False, limits=limits, timeout=PATIENCE) as client:
            streams = [client.stream("GET", f"{server.url}/status", headers=STREAM) for _ in range(33)]
            responses = [stream.__enter__() for stream in streams]
            begun = [events(response) for response in responses]
            assert all(next(told) for told in begun)
            assert list(begun[-1]) == []
            assert [next(told) and next(told) for told in begun[:-1]]
            for stream in streams:
                stream.__exit__(None, None, None)
        eventually(lambda: server.metric("mpserve_connections") <= 2)  # that of ``server.client``, and that which asks
