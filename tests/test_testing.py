"""The client without a server, as its document shows it, and what it does with failures."""

from typing import Any

import pytest

from mpserve import Model, Tensor, TensorModel
from mpserve.errors import ModelLoadError
from mpserve.testing import Client, Refused
from tests.documents import ROOT, blocks


def test_the_document_s_test_passes() -> None:
    page = blocks(ROOT / "docs" / "reference" / "command.md")
    [source] = [block.text for block in page if "mpserve.testing" in block.text]
    names: dict[str, Any] = {}
    exec(source, names)
    names["test_twice"]()


class Picky(TensorModel):
    name = "meta/picky"
    inputs = (Tensor("x", "INT64", [-1]),)

    def predict(self, x: Any) -> Any:
        if x.sum() == 0:
            raise ZeroDivisionError("zero")
        return x


def test_a_refusal_has_the_status_and_the_reason_and_the_next_request_is_answered() -> None:
    with Client([Picky]) as client:
        for name, rows, status, reason in (
            ("meta/picky", ["a"], 400, "expected numbers"), ("meta/picky", [0], 500, "ZeroDivisionError : zero"),
            ("m", [1], 404, "meta/picky"),
        ):  # fmt: skip
            with pytest.raises(Refused, match=reason) as refused:
                client.predict(name, rows)
            assert refused.value.status == status
        assert client.predict("meta/picky", [7]) == [7]
        assert client.request("GET", "/v2/health/ready?x=1").headers["content-type"] == "application/json"


def test_a_model_that_cannot_be_loaded_is_told_when_the_block_begins() -> None:
    class Broken(Model):
        name = "broken"

        def load(self) -> bool:
            raise OSError("no weights")

    with pytest.raises(ModelLoadError, match=r"load\(\) of model broken failed: OSError: no weights"), Client([Broken]):
        pass
