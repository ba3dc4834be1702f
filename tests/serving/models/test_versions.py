"""How versions are written and compared."""

import random
from typing import Any

import pytest

from mpserve.errors import ConfigurationError
from mpserve.serving.models.model import Model
from mpserve.serving.models.versions import age, refuse_twins, split
from tests.cases import each


@each("oldest_to_newest", [
    ["1", "2", "10"], ["0", "01", "1", "2"], ["v1", "v2", "v10"], ["v1.9", "v1.10", "v1.10.1", "v2"],
    ["2024-9-30", "2024-11-5", "2024-11-23"], ["2024-09-30", "2024-11-23", "2025-01-01"], ["9", "10", "beta", "v1"],
    ["alpha", "beta", "beta2", "beta10"], ["1.0", "1.0-rc1", "1.0-rc2", "1.1"], ["1", "1a", "1b", "2"],
])  # fmt: skip
def test_the_newest_version_is_the_last_in_natural_order(oldest_to_newest: list[str]) -> None:
    shuffled = random.Random(7).sample(oldest_to_newest, len(oldest_to_newest))
    assert sorted(shuffled, key=age) == oldest_to_newest


@each("title, name, version", [
    ("m", "m", ""), ("m@1", "m", "1"), ("m@2024-11-23", "m", "2024-11-23"), ("my.model@v1.2", "my.model", "v1.2"),
])  # fmt: skip
def test_a_version_stands_after_the_name(title: str, name: str, version: str) -> None:
    assert split(title) == (name, version)


@each("title", ["", "@", "@1", "m@", "m@1@2", "m@@"])
def test_a_title_that_lacks_a_part_or_has_one_too_many_is_refused(title: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no model: expected NAME or NAME@VERSION"):
        split(title)


def model(name: str, version: object) -> Any:
    return type("Versioned", (Model,), {"name": name, "version": version})


def test_models_may_share_a_name_or_a_version_but_not_both() -> None:
    refuse_twins([model("a", "1"), model("a", "2"), model("b", "1")])
    with pytest.raises(ConfigurationError, match="two models are named 'a' and have version '1'"):
        refuse_twins([model("a", "1"), model("b", "1"), model("a", "1")])


@each("version", [2, "", None])
def test_a_version_is_a_text(version: object) -> None:
    with pytest.raises(ConfigurationError, match=r"model m: version is .*, expected a text such as '2'"):
        refuse_twins([model("m", version)])
