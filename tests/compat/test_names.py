"""What exists only for scripts of the kserve SDK, used as they use it."""

import argparse
import importlib
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from mpserve import Model
from mpserve.compat import errors, flags, utils
from mpserve.compat.logging import configure_logging
from mpserve.compat.utils import Storage
from mpserve.errors import Code, ConfigurationError, MPServeError
from tests.cases import each


def test_a_script_declares_flags_of_its_own_beside_the_sdks() -> None:
    parser = argparse.ArgumentParser(parents=[flags.parser])
    parser.add_argument("--model_dir", required=True)
    parser.add_argument("--nthread", type=int, default=1)
    words = ["--model_dir", "/m", "--http_port=81", "--enable_grpc", "false", "--timeout-keep-alive", "5"]
    arguments, rest = parser.parse_known_args([*words, "--devices=cpu"])
    assert (arguments.model_dir, arguments.http_port, arguments.enable_grpc) == ("/m", 81, False)
    assert (arguments.timeout_keep_alive, arguments.model_name, arguments.workers) == (5, "model", 1)
    assert rest == ["--devices=cpu"]


def test_what_the_environment_says_is_the_default_of_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSERVE_WORKERS", "3")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    assert importlib.reload(flags).parser.parse_args([]).workers == 3


@each("error, text, code", [
    (errors.ServerNotLive(), "Server is not live.", Code.NOT_READY),
    (errors.UnsupportedProtocol("v3"), "Unsupported protocol v3.", Code.NOT_SUPPORTED),
    (errors.ModelMissingError(Path("/m")), "/m", None),
    (errors.NoModelReady([Model("a"), Model("b")]), "Models that are not ready: a, b.", None),
    (errors.WorkersShouldBeLessThanMaxWorkersError(max_workers=1), "Workers cannot be greater than 1", None),
])  # fmt: skip
def test_errors_say_what_they_said(error: Exception, text: str, code: Code | None) -> None:
    assert str(error) == text
    assert (error.code if isinstance(error, MPServeError) else None) == code


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_model_that_is_on_this_machine_is_used_where_it_is(tmp_path: Path, prefix: str) -> None:
    assert Storage.download(f"{prefix}{tmp_path}") == str(tmp_path)


@each("arguments", [("s3://bucket/model",), ("/nowhere",), ("/", "/elsewhere")])
def test_nothing_is_downloaded(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError, match=r"expected the path of a model .* pip install kserve-storage"):
        Storage.download(*arguments)


def test_datatypes_and_dtypes_and_none_for_one_that_is_not_known() -> None:
    for datatype, dtype in (("FP32", np.float32), ("BOOL", bool), ("BYTES", object), ("INT8", "int8")):
        assert (utils.to_np_dtype(datatype), utils.from_np_dtype(dtype)) == (np.dtype(dtype), datatype)
    assert (utils.to_np_dtype("FP31"), utils.from_np_dtype(complex)) == (None, None)


def test_logging_is_configured_by_a_dict() -> None:
    configure_logging({"version": 1, "incremental": True, "loggers": {"kserve.test": {"level": "ERROR"}}})
    assert logging.getLogger("kserve.test").level == logging.ERROR


def test_a_file_that_describes_no_logging_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml cannot be read"):
        configure_logging("nowhere.yaml")
