"""``/docs`` in a browser that can reach nothing but the server: what is there is listed, and may be tried."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser, browsing, check_on_every_screen, needs_browser
from tests.running import Server, eventually, serving

pytestmark = needs_browser

MODELS = """
import pathlib
import time

from mpserve import Model, Tensor, TensorModel

class Iris(TensorModel):
    name = "iris"
    inputs = (Tensor("features", "FP32", (-1, 4)),)
    outputs = (Tensor("species", "INT64", (-1,)),)
    def predict(self, features):
        return features.argmax(axis=1)

class Slowly(Model):
    name = "slowly"
    def predict(self, payload, headers=None):
        yield "first"
        while not pathlib.Path("go-on").exists():
            time.sleep(0.01)
        yield "second"

models = [Iris(), Slowly()]
"""

FUNCTIONS = """
def load():
    return 2

def predict(factor, x):
    return x * factor
"""

INFER = "//details[summary[contains(., '/v2/models/iris/infer')]]"
READY = "//details[summary/code[text()='/v2/models/{model}/ready']]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = "--workers=2", "--enable_docs_url=true"
    with serving(tmp_path_factory.mktemp("server"), MODELS, *flags, target="model.py:models") as running:
        yield running.wait_ready(workers=2)


@pytest.fixture
def browser(tmp_path: Path, server: Server) -> Iterator[Browser]:
    with browsing(tmp_path) as browser:
        browser.open(f"{server.url}/docs")
        browser.find("//section")
        yield browser


def test_every_route_is_listed_and_nothing_is_loaded_from_elsewhere(server: Server, browser: Browser) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    listed = browser.run(
        "return [...document.querySelectorAll('summary .method + code')].map(code => code.textContent)"
    )
    assert sorted(listed) == sorted(path for path, item in paths.items() for _ in item)
    loaded = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    files = ("openapi.json", "pages/base.css", "pages/common.js", "pages/docs.css", "pages/docs.js")
    assert sorted(loaded) == [f"{server.url}/{file}" for file in files]


def test_the_example_of_a_model_is_sent_and_its_answer_is_shown(browser: Browser) -> None:
    browser.click(f"{INFER}/summary")
    assert '"features"' in browser.text(f"{INFER}//dl/following::code[contains(., 'InferInput')]")
    browser.click(f"{INFER}//button")
    assert browser.text(f"{INFER}//p[@class='success']") == "200 OK"
    assert '"species"' in browser.text(f"{INFER}//pre")


def test_what_is_written_is_sent_and_its_error_is_shown(browser: Browser) -> None:
    browser.click(f"{INFER}/summary")
    browser.type(f"{INFER}//textarea", "{")
    browser.click(f"{INFER}//button")
    assert browser.text(f"{INFER}//p[@class='fault']") == "400 Bad Request"
    assert "Unrecognized request format" in browser.text(f"{INFER}//pre")


def test_places_in_a_path_are_filled_in(browser: Browser) -> None:
    browser.click(f"{READY}/summary")
    for name, status in (("iris", "200 OK"), ("no/such?", "404 Not Found")):
        browser.type(f"{READY}//input[@name='model']", name)
        browser.click(f"{READY}//button")
        eventually(lambda status=status: browser.text(f"{READY}//div[@class='result']").startswith(status))


def test_a_schemas_name_leads_to_it(browser: Browser) -> None:
    browser.click(f"{INFER}/summary")
    browser.click(f"{INFER}//a[text()='InferRequest']")
    assert "inputs: InferInput[]" in browser.text("//details[@id='InferRequest']/div")


def test_a_key_is_asked_for_and_sent(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-0123456789abcdef\n")
    flags = ("--enable_docs_url=true", "--api_keys_file=keys", "--public=health,docs")
    with serving(tmp_path, MODELS, *flags, target="model.py:models") as server, browsing(tmp_path) as browser:
        server.wait_ready()
        browser.open(f"{server.url}/docs")
        browser.click(f"{INFER}/summary")
        browser.click(f"{INFER}//button")
        eventually(lambda: "401" in browser.text(f"{INFER}//p[@class='fault']"))
        browser.type("//input[@type='password']", "alice-0123456789abcdef")
        browser.click(f"{INFER}//button")
        assert browser.text(f"{INFER}//p[@class='success']") == "200 OK"


def test_it_fits_every_screen_and_can_be_read(browser: Browser, tmp_path: Path) -> None:
    browser.click(f"{INFER}/summary")
    browser.click(f"{INFER}//button")
    browser.find(f"{INFER}//p[@class='success']")
    check_on_every_screen(browser, tmp_path)


def test_parts_of_an_answer_are_shown_as_they_come(server: Server, browser: Browser) -> None:
    predict = "//details[summary[contains(., '/v1/models/slowly:predict')]]"
    browser.click(f"{predict}/summary")
    browser.click(f"{predict}//button")
    try:
        eventually(lambda: browser.text(f"{predict}//pre") == "first")
    finally:
        server.log_file.with_name("go-on").touch()
    eventually(lambda: browser.text(f"{predict}//pre") == "firstsecond")


def test_a_pair_of_functions_is_listed_and_its_example_is_answered(tmp_path: Path) -> None:
    with (
        serving(tmp_path, FUNCTIONS, "--enable_docs_url=true", target="double.py") as server,
        browsing(tmp_path) as browser,
    ):
        browser.open(f"{server.wait_ready().url}/docs")
        for path in ("/v2/models/double/infer", "/v1/models/double:predict"):
            place = f"//details[summary[contains(., '{path}')]]"
            browser.click(f"{place}/summary")
            browser.click(f"{place}//button")
            assert browser.text(f"{place}//p[@class='success']") == "200 OK"
