"""A repository of the Hugging Face hub, brought into the cache that huggingface_hub keeps for all programs.

A commit there never changes, and huggingface_hub checks and resumes its files by itself.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpserve.errors import ConfigurationError, text_of
from mpserve.serving.storage.address import Address
from mpserve.serving.storage.cache import make_folder
from mpserve.serving.storage.remote import Report

_MEANINGS = {
    "GatedRepoError": "access is denied: accept the terms of the repository on its page, and set HF_TOKEN",
    "RepositoryNotFoundError": "there is no such repository, or it is private and HF_TOKEN does not allow it",
    "RevisionNotFoundError": "there is no such revision",
    "LocalEntryNotFoundError": "it is not in the local cache, and the hub cannot be reached or HF_HUB_OFFLINE is set",
    "OfflineModeIsEnabled": "it is not in the local cache, and HF_HUB_OFFLINE is set",
    "HFValidationError": "expected hf://ORG/NAME or hf://ORG/NAME@REVISION",
}


def snapshot(address: Address, cache: Path, report: Report) -> Path:
    """The folder of ``hf://ORG/NAME@REVISION``. Raises ConfigurationError: it cannot be fetched."""
    named = re.fullmatch(r"([^/@:]+/[^/@:]+?)(?:[@:](.+))?/?", address.place)
    if named is None or address.sha256:
        raise ConfigurationError(f"{address.shown}: {_MEANINGS['HFValidationError']}")
    try:
        from huggingface_hub import snapshot_download
        from tqdm import tqdm
    except ImportError as missing:
        raise ConfigurationError(
            f"{address.shown} needs {missing.name}, which is not installed: pip install 'mpserve[huggingface]'"
        ) from None

    class Bytes(tqdm):  # type: ignore[misc]
        """Tells of the bytes that it counts, and shows nothing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            self.told = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"  # counted once more
            super().__init__(*arguments, **{**options, "disable": True})
            self.n = options.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            if self.told:
                report(int(self.n), int(self.total) if self.total else None)

    try:
        folder = Path(snapshot_download(named[1], revision=named[2], tqdm_class=Bytes))
    except Exception as error:
        kind = type(error).__name__
        meaning = _MEANINGS.get(kind, f"it cannot be fetched: {kind}: {text_of(error)}")
        raise ConfigurationError(f"{address.shown}: {meaning}") from None
    return _named(folder, named[1], cache)


def _named(folder: Path, repository: str, cache: Path) -> Path:
    """A link to the folder with the name of the repository: models are named after their folder, and this one is a hash.
    Without a folder for the link, the folder itself.
    """
    with suppress(OSError, ConfigurationError):
        place = make_folder(cache, f"hf-{repository.replace('/', '-')}") / folder.name
        place.mkdir(exist_ok=True)
        link = place / repository.rpartition("/")[2]
        with suppress(FileExistsError):
            link.symlink_to(folder)
        if link.resolve() == folder.resolve():
            return link
    return folder
