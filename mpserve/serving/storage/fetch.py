"""Turns an address of a model into a path on this machine, before anything looks at it. Runs in the arbiter."""

import dataclasses
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.storage.address import Address, is_address, parse
from mpserve.serving.storage.child import PROGRAM
from mpserve.serving.storage.progress import Progress

logger = logging.getLogger(__name__)

CLAIMS = Path("/mnt/pvc")
"""Where KServe mounts the volume of a ``pvc://`` address."""


def on_this_machine(settings: Settings) -> Settings:
    """The settings with paths instead of the addresses of models, which are fetched.
    Raises ConfigurationError: an address is wrong, or cannot be fetched.
    """
    given = {"target": settings.target, "model_dir": settings.model_dir}
    paths: dict[str, Any] = {
        name: path_of(text, settings.cache_dir) for name, text in given.items() if text and is_address(text)
    }
    return dataclasses.replace(settings, **paths) if paths else settings


def path_of(text: str, cache_dir: str | None) -> str:
    """The path of what an address names, with the ``:Class`` of a target."""
    address = parse(text)
    if address.scheme in ("file", "pvc") and address.sha256:
        raise ConfigurationError(f"{address.shown}: #sha256= is checked when a file is fetched, and this is a path")
    if address.scheme == "file":
        path = Path("/" + address.place.removeprefix("localhost").lstrip("/"))
    elif address.scheme == "pvc":
        path = _of_claim(address)
    else:
        path = _fetched(address, text, cache_dir)
    return f"{path}:{address.attribute}" if address.attribute else str(path)


def _of_claim(address: Address) -> Path:
    path = CLAIMS / address.place.partition("/")[2].lstrip("/")
    if not path.exists():
        raise ConfigurationError(
            f"{address.shown}: KServe mounts a claim at {CLAIMS}, and there is no {path}; mount the claim, and name the path"
        )
    return path


def _fetched(address: Address, text: str, cache_dir: str | None) -> Path:
    begin = time.monotonic()
    logger.info("fetching %s", address.shown)
    job = json.dumps(
        {"address": text, "cache_dir": cache_dir, "path": sys.path}
    )  # not an argument: it may hold secrets
    progress, end = Progress(address.shown), dict[str, Any]()
    with subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(job)
        child.stdin.close()
        for line in child.stdout:
            end = json.loads(line)
            if "done" in end:
                progress.update(end["done"], end["total"])
            elif "waiting" in end:
                logger.info("another process is fetching %s: waiting for it", address.shown)
        progress.end()
    if "error" in end:
        raise ConfigurationError(end["error"])
    if "path" not in end:
        raise ConfigurationError(f"the process that fetched {address.shown} ended with status {child.returncode}")
    logger.info("%s is in %s (%.1f s)", address.shown, end["path"], time.monotonic() - begin)
    return Path(end["path"])
