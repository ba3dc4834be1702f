"""``kserve_storage.Storage``: a model that is on this machine already is used where it is; nothing is downloaded."""

from pathlib import Path

from mpserve.errors import ConfigurationError

_LOCAL = "file://"


class Storage:
    """The one call that model servers make."""

    @staticmethod
    def download(uri: str | Path, out_dir: str | None = None) -> str:
        """The local path that `uri` is.

        Raises:
            ConfigurationError: it is no local path, or it is to be put elsewhere.
        """
        path = str(uri).removeprefix(_LOCAL)
        if out_dir is not None or not Path(path).exists():
            raise ConfigurationError(
                f"Storage.download({str(uri)!r}{'' if out_dir is None else f', {out_dir!r}'}): expected the path of a"
                " model that is on this machine. KServe puts it under /mnt/models before the container starts;"
                " pip install kserve-storage brings the package that downloads"
            )
        return path
