"""The address of a model: what it names, and how it is shown without its secrets."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from mpserve.errors import ConfigurationError

BUCKETS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
"""Schemes of object storage, which fsspec reads -> the extra of mpserve that brings the package."""

PACKAGES = {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}
"""What each of these extras brings, besides fsspec."""

KNOWN = ("s3://", "gs://", "az://", "hf://", "https://", "http://", "file://", "pvc://")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")

_SIGNED = {
    "x-amz-signature": "x-amz-",
    "x-goog-signature": "x-goog-",
    "signature": "signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy",
    "sig": "(sig|se|st|sp|spr|sv|sr|sip|skoid|sktid|skt|ske|sks|skv)$",
}
"""The parameter of a query that holds a signature -> the parameters that change with each signature."""


@dataclass(frozen=True)
class Address:
    """An address, taken apart.

    Attributes:
        scheme: in lower case.
        url: the address without its digest and its attribute. It may hold secrets.
        place: what follows the scheme, without its query.
        sha256: the digest that the file must have, or an empty text.
        attribute: the object of a ``model.py:Class``, or an empty text.
    """

    scheme: str
    url: str
    place: str
    sha256: str
    attribute: str

    @property
    def shown(self) -> str:
        """The address without user, password and query, for messages."""
        return f"{self.scheme}://{self.place.removeprefix(f'{self._user}@') if self._user else self.place}"

    @property
    def stable(self) -> str:
        """The address without its secrets, so that a new signature of the same file gives the same text."""
        pairs = parse_qsl(urlsplit(self.url).query, keep_blank_values=True)
        names = {name.lower() for name, _ in pairs}
        for mark, changing in _SIGNED.items():
            if mark in names:
                pairs = [(name, value) for name, value in pairs if not re.match(changing, name.lower())]
        return f"{self.shown}?{urlencode(pairs)}" if pairs else self.shown

    @property
    def name(self) -> str:
        """The last part of the path, under which the file or folder is kept."""
        path = unquote(urlsplit(self.url).path if self._is_http else self.place)
        name = PurePosixPath(path).name
        return name if name.strip(".") and name.isprintable() else "model"

    @property
    def folder(self) -> str:
        """The name of the folder of this address in the cache."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", self.shown)[:80].strip("-.")
        return f"{readable}-{hashlib.sha256(self.stable.encode()).hexdigest()[:12]}"

    @property
    def is_archive(self) -> bool:
        """Whether the name is that of an archive, which is unpacked."""
        return self.name.lower().endswith(ARCHIVES)

    @property
    def stem(self) -> str:
        """The name without the ending of an archive."""
        ending = next(ending for ending in ARCHIVES if self.name.lower().endswith(ending))
        return self.name[: -len(ending)] or "model"

    def hide(self, text: str) -> str:
        """A text of a library without the secrets of the address."""
        parts = urlsplit(self.url)
        values = [value for _, value in parse_qsl(parts.query)] if self._is_http else []
        secrets = [self.url, parts.query if self._is_http else "", self._user, *self._user.split(":"), *values]
        for secret in sorted({each for part in secrets for each in (part, unquote(part))}, key=len, reverse=True):
            if len(secret) > 3:  # a shorter one would hide parts of words
                text = text.replace(secret, self.shown if secret == self.url else "…")
        return text

    @property
    def _is_http(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def _user(self) -> str:
        """The ``user:password`` before the host. The ``container@account`` of Azure is none."""
        user = urlsplit(self.url).netloc.rpartition("@")[0]
        return user if self._is_http or ":" in user else ""


def is_address(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def parse(text: str) -> Address:
    """Take an address apart. Raises ConfigurationError: its scheme is unknown, or its end is not understood."""
    try:
        return _parsed(text)
    except ValueError as error:  # of urlsplit
        raise ConfigurationError(f"an address that begins with {text[:8]} is not understood: {error}") from None


def _parsed(text: str) -> Address:
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    rest, _, fragment = rest.partition("#")
    is_http = scheme in ("http", "https")
    place, mark, query = rest.partition("?") if is_http else (rest, "", "")
    named = re.fullmatch(r"(.*\.py):([A-Za-z_][\w.]*)", place)
    place, attribute = (named[1], named[2]) if named else (place, "")
    address = Address(scheme, f"{scheme}://{place}{mark}{query}", place, "", attribute)
    if f"{scheme}://" not in KNOWN and scheme not in BUCKETS:
        raise ConfigurationError(f"{address.shown}: expected a path, or an address that begins with {', '.join(KNOWN)}")
    if not address.place.strip("/"):
        raise ConfigurationError(f"{address.shown}: expected more than {scheme}://")
    if is_http and not urlsplit(address.url).hostname:
        raise ConfigurationError(f"{address.shown}: expected the name of a host after {scheme}://")
    if not fragment:
        return address
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if digest is None:
        raise ConfigurationError(f"{address.shown}: got #{fragment[:80]}, expected #sha256= and 64 hexadecimal digits")
    return Address(scheme, address.url, address.place, digest[1].lower(), attribute)


def without_user(url: str) -> tuple[str, str]:
    """The URL without ``user:password@``, and that part."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host)), user
